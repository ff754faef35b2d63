from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from revbifpn.sparsity import count_flops, select_weights, training_flops
from tests.sparsity.common import small_network, tiny_revbifpn


def cifar_resnet18() -> nn.Module:
    """The published CIFAR form: a 3x3 stem of stride 1 and no pooling before the blocks."""
    model = timm.create_model("resnet18", num_classes=100)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def test_published_budgets() -> None:
    """Sparse-IFT's dense budgets, which count norms and activations too: within 1%."""
    with torch.device("meta"):
        imagenet18, imagenet34 = timm.create_model("resnet18"), timm.create_model("resnet34")
        cifar = cifar_resnet18()
    assert count_flops(imagenet18, (1, 3, 224, 224)).total == pytest.approx(3_647_128_359, rel=0.01)
    assert count_flops(imagenet34, (1, 3, 224, 224)).total == pytest.approx(7_355_270_501, rel=0.01)
    assert count_flops(cifar, (1, 3, 32, 32)).total == pytest.approx(1_115_226_800, rel=0.01)


@pytest.mark.parametrize("make", [small_network, tiny_revbifpn])
def test_layers_add_up_to_what_torch_counts_when_it_computes(make: type[nn.Module]) -> None:
    model = make().eval()
    image = torch.randn(1, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flops = count_flops(model, (1, 3, 32, 32))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    assert flops.total == counter.get_total_flops() == sum(flops.layers.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training
    model.train()
    count_flops(model, (1, 3, 32, 32))
    assert all(module.training for module in model.modules())


def test_matrix_products_without_weights_stay_dense() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    flops = count_flops(model, (1, 3, 224, 224))
    attention = 12 * 2 * 2 * 197 * 197 * 192  # layers * (qk and av) * 2 * tokens^2 * width
    assert flops.total - sum(flops.layers.values()) == attention


def test_sparse_operations_count_kept_weights() -> None:
    model = small_network()
    flops = count_flops(model, (1, 3, 8, 8))
    conv1, conv2 = 2 * 64 * 1152, 2 * 64 * 2304
    assert flops.layers["conv1.weight"] == conv1
    assert flops.sparse({"conv1.weight": 0.25, "conv2.weight": 0.5}) == flops.total - 0.75 * conv1 - 0.5 * conv2
    masks = {"conv1.weight": torch.zeros(16, 8, 3, 3, dtype=torch.bool)}
    masks["conv1.weight"][0] = True
    assert flops.masked(masks) == pytest.approx(flops.total - 15 / 16 * conv1)


def test_density_for_a_budget() -> None:
    model = small_network()
    flops = count_flops(model, (1, 3, 8, 8))
    names = list(select_weights(model))
    density = flops.density_for(0.6 * flops.total, names)
    assert flops.sparse(dict.fromkeys(names, density)) == pytest.approx(0.6 * flops.total)
    with pytest.raises(ValueError, match="leaves nothing of 10 for the sparse weights"):
        flops.density_for(10, names)
    with pytest.raises(ValueError, match="less than the"):
        flops.density_for(2 * flops.total, names)


def test_training_operations() -> None:
    assert training_flops(100, 100, 10) == 3000
    assert training_flops(100, 20, 10) == training_flops(100, 20, 10, "set") == 600
    one = (3 * 20 * 4 + 2 * 20 + 100) / 5
    assert training_flops(100, 20, 10, "rigl", update_every=4) == pytest.approx(10 * one)
    assert training_flops(100, 20, 10, "rigl", update_every=4, end=6) == pytest.approx(6 * one + 4 * 60)
    with pytest.raises(ValueError, match="got 'gradual'"):
        training_flops(100, 20, 10, "gradual")
