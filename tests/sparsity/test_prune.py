"""Pruning whole networks: what is pruned, by which inputs, and that nothing changes where it cannot be done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import StdConv2d
from torch import Tensor, nn

from revbifpn.sparsity.distribution import count_zeros
from revbifpn.sparsity.masks import check_masks, check_zeros
from revbifpn.sparsity.prune import METHODS, Method, prune
from tests.sparsity.networks import PRUNED, SmallNet, correlated, small_net, tiny_revbifpn

IMAGES = correlated(24)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(model: nn.Module, state: dict[str, Tensor], but: Callable[[str], bool] = lambda key: False) -> None:
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert [key for key in state if not torch.equal(now[key], state[key]) and not but(key)] == []


@pytest.mark.parametrize("sparsity", [0.5, 0.77, "2:4"])
@pytest.mark.parametrize("method", METHODS)
def test_every_layer_gets_its_zeros_and_all_else_stays(method: Method, sparsity: float | str) -> None:
    model = small_net()
    before = state_of(model)
    result = prune(model, IMAGES, sparsity, method=method, repair=False)
    assert_same(model, before, lambda key: key in PRUNED)
    assert list(result.masks) == PRUNED
    assert [layer.name for layer in result.layers] == PRUNED
    weights = {name: model.get_parameter(name) for name in PRUNED}
    check_masks(weights, result.masks)
    check_zeros(weights, result.masks)
    for layer in result.layers:
        weight = model.get_parameter(layer.name)
        asked = 0.5 if sparsity == "2:4" else sparsity
        assert layer.zeros == int((weight == 0).sum()) == count_zeros(weight.numel(), asked)
        assert 0 < (layer.error or 0) < 1
        if method != "sparsegpt":  # what stays is as it was
            mask = result.masks[layer.name]
            assert torch.equal(weight[mask], before[layer.name][mask])
    assert "| all | |" in result.table()
    assert not model.training


def test_sparsegpt_keeps_outputs_best() -> None:
    errors = {}
    for method in METHODS:
        model, dense = small_net(), small_net()
        result = prune(model, IMAGES, 0.6, method=method, repair=False)
        with torch.no_grad():
            outputs = dense(IMAGES)
            whole = (model(IMAGES) - outputs).square().sum() / outputs.square().sum()
        errors[method] = [layer.error or 0 for layer in result.layers] + [float(whole)]
    for ours, wanda, magnitude in zip(errors["sparsegpt"], errors["wanda"], errors["magnitude"], strict=True):
        assert ours < min(wanda, magnitude)


def test_layers_see_what_the_pruned_ones_before_them_give() -> None:
    model, dense = small_net(), small_net()
    result = prune(model, IMAGES, 0.6, repair=False)
    inputs: list[Tensor] = []
    handle = model.point.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(IMAGES)
        handle.remove()
        wanted, found = dense.point(inputs[0]), model.point(inputs[0])
    error = float((found - wanted).square().sum() / wanted.square().sum())
    # float32 outputs against float64 moments
    assert result.layers[1].error == pytest.approx(error, rel=1e-4)
    assert result.layers[1].positions == 24 * 6 * 6


def test_a_grouped_layer_is_pruned_group_by_group() -> None:
    """Each half of a grouped convolution is what a convolution of its own with its half of the input becomes."""

    class Halves(nn.Module):
        def __init__(self, grouped: nn.Conv2d, part: int | None) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)  # the one that stays dense
            self.part, self.conv = part, grouped
            if part is not None:
                self.conv = nn.Conv2d(4, 8, 3, padding=1)
                self.conv.weight.data.copy_(grouped.weight.data[8 * part : 8 * part + 8])

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x, x.flip(1)[:, :2] ** 2, x[:, :3] * x.flip(1)], 1)
            return self.conv(x if self.part is None else x[:, 4 * self.part : 4 * self.part + 4])

    torch.manual_seed(0)
    grouped = nn.Conv2d(8, 16, 3, padding=1, groups=2)
    halves = [Halves(grouped, part) for part in (0, 1)]
    whole = Halves(grouped, None)
    for model in (whole, *halves):
        prune(model, IMAGES, 0.5, repair=False)
    expected = torch.cat([half.conv.weight for half in halves])
    torch.testing.assert_close(whole.conv.weight, expected, rtol=1e-5, atol=1e-6)


def test_pruning_again_to_more_keeps_zeros() -> None:
    model = small_net()
    first = prune(model, IMAGES, 0.5)
    second = prune(model, IMAGES, 0.7)
    for name in PRUNED:
        assert not (second.masks[name] & ~first.masks[name]).any()
    assert second.zeros == sum(count_zeros(model.get_parameter(name).numel(), 0.7) for name in PRUNED)


def test_a_weight_that_is_used_twice_is_pruned_by_all_its_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.conv(self.conv(x).relu())

    torch.manual_seed(0)
    model = Twice()
    before = model.conv.weight.detach().clone()
    result = prune(model, IMAGES, 0.5)
    assert result.layers[0].positions == 2 * 24 * 12 * 12
    assert int((model.conv.weight == 0).sum()) == before.numel() // 2
    assert len(result.layers) == 1


def test_magnitude_needs_no_images() -> None:
    alone, calibrated = small_net(), small_net()
    result = prune(alone, None, 0.5, method="magnitude")
    prune(calibrated, IMAGES, 0.5, method="magnitude", repair=False)
    assert_same(alone, state_of(calibrated))
    assert [layer.error for layer in result.layers] == [None] * 3


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_timms_networks(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    keys = list(model.state_dict())
    size = model.pretrained_cfg["input_size"][-1]
    result = prune(model, torch.randn(3, 3, size, size), 0.5, positions=2000)
    assert list(model.state_dict()) == keys
    assert result.zeros == sum(mask.numel() // 2 for mask in result.masks.values())
    assert all((model.get_parameter(key) == 0).sum() == (~mask).sum() for key, mask in result.masks.items())


def test_revbifpn_in_both_modes() -> None:
    images = correlated(6, 64)
    results = {}
    for reversible in (True, False):
        model = tiny_revbifpn(reversible)
        results[reversible] = prune(model, images, 0.5), state_of(model), model
    (ours, state, model), (theirs, other, _) = results[True], results[False]
    assert len(ours.layers) > 20
    assert ours.repaired == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for name in ours.masks:
        assert torch.equal(ours.masks[name], theirs.masks[name]), name
    assert all(torch.equal(state[key], other[key]) for key in state)
    # It can be trained on in reversible mode.
    model.train()(images).square().mean().backward()
    assert all(model.get_parameter(name).grad is not None for name in ours.masks)


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (correlated(2)[:, :1], {}, r"calibration images of shape \(2, 1, 12, 12\) do not go through SmallNet"),
        (torch.zeros(3, 12, 12), {}, r"floats of shape \(N, C, H, W\), got torch.float32 \(3, 12, 12\)"),
        (torch.zeros(2, 3, 12, 12, dtype=torch.uint8), {}, "must be floats .*, got torch.uint8"),
        (torch.full((2, 3, 12, 12), torch.nan), {}, "must be finite"),
        (torch.zeros(0, 3, 12, 12), {}, "must be floats of shape"),
        (None, {}, "'sparsegpt' needs calibration images; only 'magnitude' does without"),
        (IMAGES, {"sparsity": 1.2}, "at least 0 and less than 1, got 1.2"),
        (IMAGES, {"sparsity": 1.0}, "at 1 no weight would be left"),
        (IMAGES, {"sparsity": "3:16"}, "point.weight|grouped.weight has 4 inputs"),
        (IMAGES, {"method": "random"}, "method must be one of 'sparsegpt', 'wanda', 'magnitude', got 'random'"),
        (IMAGES, {"dense": ["nothing*"]}, r"pattern 'nothing\*' .* matches no parameter"),
        (IMAGES, {"dense": ["*"]}, "SmallNet has no weight to prune"),
        (IMAGES, {"positions": 0}, "positions must be at least 1"),
    ],
)
def test_bad_input_changes_nothing(images: Tensor | None, options: dict[str, Any], message: str) -> None:
    model = small_net().train()
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        prune(model, images, **{"sparsity": 0.5, **options})
    assert_same(model, before)
    assert all(module.training for module in model.modules())


def test_a_failure_half_way_gives_the_weights_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net()
    before = state_of(model)
    images = IMAGES.clone()

    def overflow(x: Tensor) -> Tensor:
        return x * torch.inf if len(x) > 1 else x

    handle = model.depthwise.register_forward_hook(lambda module, args, output: overflow(output))
    with pytest.raises(ValueError, match="the inputs of point.weight are not finite"):
        prune(model, images, 0.5)
    handle.remove()
    assert_same(model, before)


def test_weights_that_are_not_what_the_layer_computes_with_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), StdConv2d(8, 8, 3), nn.Conv2d(8, 8, 1))
    with pytest.raises(ValueError, match="1 weights of Sequential are not reached .* 1.weight. Leave them dense"):
        prune(model, IMAGES, 0.5)
    assert list(prune(model, IMAGES, 0.5, dense=["1.weight"]).masks) == ["2.weight"]


def test_a_layer_without_a_weight_is_named() -> None:
    model = small_net()
    nn.init.zeros_(model.point.weight)
    with pytest.raises(ValueError, match="point.weight would be left without a weight: all are zero already"):
        prune(model, IMAGES, 0.5)
    assert list(prune(model, IMAGES, 0.5, dense=["point"]).masks) == ["grouped.weight", "hidden.weight"]


def test_training_mode_comes_back() -> None:
    model = small_net().train()
    model.drop.eval()
    modes = [module.training for module in model.modules()]
    prune(model, IMAGES, 0.5)
    assert [module.training for module in model.modules()] == modes
    assert isinstance(model, SmallNet)
