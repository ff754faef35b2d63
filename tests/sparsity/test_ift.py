"""Sparse-IFT: the published numbers, equality to a naive form, equal operations, and networks that cannot be transformed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn import set_reversible
from revbifpn.models import RevBiFPN
from revbifpn.sparsity import SparseIFT, SparseTraining, count_flops, select_weights, sparse_ift
from revbifpn.sparsity.distribution import count_zeros
from revbifpn.sparsity.ift_layers import KINDS, doped_rank, factorized_rank, num_branches, width_factor
from tests.networks import SMALL
from tests.sparsity.common import small_network, tiny_revbifpn, train
from tests.sparsity.test_flops import cifar_resnet18


def test_published_widths_branches_and_ranks() -> None:
    """The numbers of the published CIFAR ResNet-18, for sparsities of 50, 75 and 90%."""
    published = (0.5, 0.75, 0.9)
    assert [num_branches(s) for s in published] == [2, 4, 10]
    assert [int(64 * width_factor(s)) for s in published] == [90, 128, 202]
    assert [factorized_rank(9 * 64, 64, s) for s in published] == [116, 231, 577]
    assert [factorized_rank(9 * 512, 512, s) for s in published] == [922, 1844, 4609]
    assert [doped_rank(9 * 64, 64, s) for s in published] == [28, 43, 51]
    assert [doped_rank(9 * 512, 512, s) for s in published] == [230, 345, 414]


def masked(ift: SparseIFT) -> None:
    """Put random zeros where training would."""
    generator = torch.Generator().manual_seed(0)
    parameters = dict(ift.model.named_parameters())
    for name in ift.sparse:
        weight = parameters[name]
        drop = torch.randperm(weight.numel(), generator=generator)[: count_zeros(weight.numel(), ift.sparsity)]
        with torch.no_grad():
            weight.view(-1)[drop] = 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_sparsity_gives_the_dense_layer_and_network(kind: str) -> None:
    conv, x = nn.Conv2d(4, 6, 3, stride=2), torch.randn(2, 4, 9, 9)
    ift = sparse_ift(conv, kind, 0.0)
    assert ift.model is not conv
    assert torch.equal(ift.model(x), conv(x))
    model = timm.create_model("resnet18", num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    ift = sparse_ift(model, kind, 0, (3, 64, 64))
    assert torch.equal(ift.model(images), model(images))
    assert ift.sparse_flops == ift.dense_flops


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.Conv2d(64, 128, 1, bias=False), nn.Linear(128, 512)],
    ids=["3x3", "1x1", "linear"],
)
def test_a_layer_by_itself_has_the_operations_of_the_dense_one(layer: nn.Module, kind: str, sparsity: float) -> None:
    ift = sparse_ift(layer, kind, sparsity)
    nonzero = 0
    masked(ift)
    for parameter in ift.model.parameters():
        nonzero += int((parameter != 0).sum()) if parameter.ndim > 1 else 0
    dense = layer.weight.numel()
    assert nonzero == pytest.approx(dense, rel=0.01)
    assert ift.sparse_flops == 2 * nonzero
    if kind != "parallel":
        # Widths and ranks are whole numbers: what that adds or leaves out the density balances.
        assert ift.sparsity == pytest.approx(sparsity, abs=0.02)


def _conv_by_hand(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """A convolution as a matrix product over patches, in float64."""
    patches = F.unfold(x.double(), weight.shape[-1], padding=padding, stride=stride)
    side = (x.shape[-1] + 2 * padding - weight.shape[-1]) // stride + 1
    return (weight.double().flatten(1) @ patches).view(len(x), -1, side, side)


def _norm_by_hand(x: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_layers_equal_their_naive_form() -> None:
    """In float64 by matrix products; 1e-5 is float32's rounding over sums of some hundred products."""
    x = torch.randn(2, 8, 7, 7)
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)

    ift = sparse_ift(conv, "parallel", 0.75)
    weights = [p for p in ift.model.parameters() if p.ndim == 4]
    assert len(weights) == 4
    torch.testing.assert_close(ift.model(x).double(), sum(_conv_by_hand(x, w, 2, 1) for w in weights), atol=1e-5, rtol=1e-5)

    ift = sparse_ift(conv, "doped", 0.75)
    theta, u, v = (dict(ift.model.named_parameters())[f"{n}.weight"] for n in ("layer", "low_rank.down", "low_rank.up"))
    expected = _conv_by_hand(x, theta, 2, 1) + _conv_by_hand(_conv_by_hand(x, u, 2, 1), v, 1, 0)
    torch.testing.assert_close(ift.model(x).double(), expected, atol=1e-5, rtol=1e-5)
    assert ift.sparse == ("layer.weight",)
    assert set(ift.dense) == {"low_rank.down.weight", "low_rank.up.weight"}

    ift = sparse_ift(conv, "factorized", 0.75)
    u, v = (dict(ift.model.named_parameters())[f"{n}.weight"] for n in ("down", "up"))
    expected = _conv_by_hand(_norm_by_hand(_conv_by_hand(x, u, 2, 1)).relu(), v, 1, 0)
    torch.testing.assert_close(ift.model(x).double(), expected, atol=1e-5, rtol=1e-5)

    linear, z = nn.Linear(20, 30), torch.randn(5, 20)
    ift = sparse_ift(linear, "factorized", 0.5)
    model = ift.model
    expected = (z.double() @ model.down.weight.double().T).relu() @ model.up.weight.double().T + model.up.bias
    torch.testing.assert_close(model(z).double(), expected, atol=1e-5, rtol=1e-5)


def test_a_parallel_block_equals_its_naive_form() -> None:
    """relu(relu-sum of branches) and a sum of normed branches before the shortcut, as the block's own order has it."""
    block = timm.models.resnet.BasicBlock(8, 8).train()
    ift = sparse_ift(block, "parallel", 0.5, (8, 6, 6))
    x = torch.randn(2, 8, 6, 6)
    first = [m[0].weight for m in ift.model.conv1.branches]
    second = [m[0].weight for m in ift.model.conv2.branches]
    assert len(first) == len(second) == 2
    hidden = sum(_norm_by_hand(_conv_by_hand(x, w, 1, 1)).relu() for w in first)
    expected = (sum(_norm_by_hand(_conv_by_hand(hidden, w, 1, 1)) for w in second) + x).relu()
    torch.testing.assert_close(ift.model.train()(x).double(), expected, atol=1e-5, rtol=1e-5)
    assert set(ift.sparse) == {f"conv{i}.branches.{j}.0.weight" for i in (1, 2) for j in (0, 1)}


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[nn.Module, tuple[int, int, int]]]:
    """Networks without values, with the size of their images."""
    with torch.device("meta"):
        return {
            "cifar-resnet18": (cifar_resnet18(), (3, 32, 32)),
            "resnet50": (timm.create_model("resnet50"), (3, 224, 224)),
            "small S0": (RevBiFPN(SMALL), (3, 64, 64)),
        }


CASES = [("cifar-resnet18", s) for s in (0.5, 0.75, 0.9)] + [("resnet50", 0.75), ("small S0", 0.75)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "sparsity"), CASES)
def test_networks_have_the_dense_networks_operations(networks: dict[str, Any], name: str, sparsity: float, kind: str) -> None:
    model, size = networks[name]
    ift = sparse_ift(model, kind, sparsity, size)
    assert ift.sparse_flops == pytest.approx(ift.dense_flops, rel=0.01)
    assert list(select_weights(ift.model, ift.dense)) == list(ift.sparse)
    if name == "cifar-resnet18":  # by counting anew, with the zeros that SparseTraining gives each weight
        assert ift.dense_flops == count_flops(model, (1, *size)).total
        after = count_flops(ift.model, (1, *size))
        parameters = dict(ift.model.named_parameters())
        kept = {n: 1 - count_zeros(parameters[n].numel(), ift.sparsity) / parameters[n].numel() for n in ift.sparse}
        assert after.sparse(kept) == pytest.approx(ift.dense_flops, rel=0.01)


def test_wide_networks_have_the_formulas_widths(networks: dict[str, Any]) -> None:
    wide = sparse_ift(networks["cifar-resnet18"][0], "wide", 0.9, (3, 32, 32)).model
    wide_s0 = sparse_ift(networks["small S0"][0], "wide", 0.75, (3, 64, 64)).model
    assert wide.conv1.weight.shape == (202, 3, 3, 3)
    assert wide.layer4[1].conv2.weight.shape == (1619, 1619, 3, 3)  # int(512 * sqrt(10))
    assert wide.fc.weight.shape == (100, 1619)
    assert wide.num_features == 1619
    assert wide_s0.variant.channels == (96, 128, 160, 320)
    assert wide_s0.num_features == 2560


def test_a_wide_network_with_zero_initialised_norms_keeps_them() -> None:
    wide = sparse_ift(timm.create_model("resnet18", num_classes=2), "wide", 0.5, (3, 32, 32)).model
    assert not wide.layer1[0].bn2.weight.any()
    assert wide.layer1[0].bn1.weight.all()
    std = (2 / (9 * 90)) ** 0.5  # Kaiming by fan-out of the dense weight: 72,900 draws, 2% is 7 standard errors
    assert float(wide.layer1[0].conv1.weight.detach().std()) == pytest.approx(std, rel=0.02)
    wide.reset_classifier(7)
    assert wide.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_revbifpn_transformed_trains_reversibly_as_it_does_stored(kind: str) -> None:
    """Up to rounding, in float64; three steps with a change of the masks multiply it by some powers of ten."""
    ift = sparse_ift(tiny_revbifpn(), kind, 0.5)
    losses, masks = [], []
    for reversible in (True, False):
        model = set_reversible(deepcopy(ift.model).double(), reversible)
        assert model.training
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        sparse = SparseTraining(model, optimizer, ift.sparsity, "rigl", dense=ift.dense, total_steps=8, update_every=2)
        losses.append(train(model, sparse, range(3), side=64, size=2))
        masks.append(sparse.masks)
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert set(masks[0]) == set(ift.sparse)
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
    # Its smallest weights have 64 entries: counts are rounded by up to 1.6% there.
    assert ift.sparse_flops == pytest.approx(ift.dense_flops, rel=0.02)


def test_networks_that_cannot_be_transformed_say_so() -> None:
    with torch.device("meta"):
        vit, densenet, resnext = (
            timm.create_model(name) for name in ("vit_tiny_patch16_224", "densenet121", "resnext50_32x4d")
        )
    with pytest.raises(ValueError, match="the kind of Sparse-IFT must be one of wide, .*got 'thin'"):
        sparse_ift(vit, "thin", 0.5)
    with pytest.raises(ValueError, match=r"less than 1, got 1\.2"):
        sparse_ift(vit, "wide", 1.2)
    with pytest.raises(ValueError, match="VisionTransformer cannot be widened: cls_token belongs to"):
        sparse_ift(vit, "wide", 0.5)
    with pytest.raises(ValueError, match="parallel Sparse-IFT knows the blocks of timm's ResNets"):
        sparse_ift(vit, "parallel", 0.5)
    with pytest.raises(ValueError, match="DenseNet cannot be transformed so: its layers do not go together"):
        sparse_ift(densenet, "wide", 0.5)
    with pytest.raises(ValueError, match="has 32 groups, which .* cannot be divided into"):
        sparse_ift(resnext, "wide", 0.5)
    with pytest.raises(ValueError, match="in 32 groups cannot be doped"):
        sparse_ift(resnext, "doped", 0.5)
    with pytest.raises(ValueError, match="give input_size"):
        sparse_ift(small_network(), "wide", 0.5)


def test_patterns_keep_weights_of_a_wide_network_dense() -> None:
    ift = sparse_ift(small_network(), "wide", 0.5, (3, 8, 8), dense=["conv1"])
    assert ift.sparse == ("conv2.weight",)
    assert ift.sparse_flops == pytest.approx(ift.dense_flops, rel=0.01)
