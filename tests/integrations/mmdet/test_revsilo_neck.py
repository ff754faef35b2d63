"""RevSiloNeck: shapes, gradients against its stored twin, memory that does not grow with the number of silos."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from revbifpn import set_reversible
from revbifpn.integrations.mmdet import RevSiloNeck
from revbifpn.memory import profile_training
from tests.integrations.mmdet.common import assert_same, outputs_and_gradients

CHANNELS = [6, 8, 10, 12]


def levels(side: int = 32, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, side >> i, side >> i, generator=generator) for i, c in enumerate(CHANNELS)]


def neck(**options: Any) -> RevSiloNeck:
    torch.manual_seed(0)
    return RevSiloNeck(**(dict(in_channels=CHANNELS, out_channels=16, num_outs=5) | options))


def test_it_takes_fpns_arguments_for_retinanet() -> None:
    module = MODELS.build(
        dict(type="RevSiloNeck", in_channels=CHANNELS, out_channels=16, num_outs=5, start_level=1, add_extra_convs="on_input")
    )
    outputs = module(levels(64))
    assert [tuple(y.shape) for y in outputs] == [(2, 16, side, side) for side in (32, 16, 8, 4, 2)]
    assert module.extra_convs[0].in_channels == CHANNELS[-1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(num_repeats=1, num_outs=4),
        dict(num_repeats=5),
        dict(start_level=1, add_extra_convs=True),
        dict(start_level=1, add_extra_convs="on_lateral", relu_before_extra_convs=True),
        dict(end_level=1, add_extra_convs="on_output"),
        dict(norm_cfg=dict(type="GN", num_groups=4), act_cfg=dict(type="SiLU")),
    ],
    ids=str,
)
def test_gradients_and_statistics_are_those_of_the_stored_twin(options: dict[str, Any]) -> None:
    reversible = neck(**options)
    stored = set_reversible(copy.deepcopy(reversible), False)
    assert not stored.reversible
    ours, our_grads = outputs_and_gradients(reversible, levels(), reversible)
    theirs, their_grads = outputs_and_gradients(stored, levels(), stored)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert_same(our_grads, their_grads)  # rebuilt levels are rounded: some 1e-6
    torch.testing.assert_close(reversible.state_dict(), stored.state_dict(), rtol=0, atol=0)


def test_exact_mode_is_bit_identical() -> None:
    reversible = neck(exact=True)
    stored = set_reversible(copy.deepcopy(reversible), False)
    found = [outputs_and_gradients(module, levels(), module) for module in (reversible, stored)]
    for ours, theirs in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_streams_are_float32_under_autocast() -> None:
    module = neck(exact=True)
    stored = set_reversible(copy.deepcopy(module), False)
    found = []
    for twin in (module, stored):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(outputs_and_gradients(twin, levels(), twin))
    assert {y.dtype for y in found[0][0]} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def activations(num_repeats: int, reversible: bool) -> int:
    """Peak of a training step less all that grows with the number of parameters."""
    module = RevSiloNeck([256, 512, 1024, 2048], 256, 5, num_repeats=num_repeats, reversible=reversible)
    inputs = [torch.empty(2, c, 200 >> i, 304 >> i, device="meta") for i, c in enumerate([256, 512, 1024, 2048])]
    report = profile_training(module, [inputs], device="cuda")
    return report.peak - sum(report.categories[name] for name in ("parameters", "buffers", "gradients"))


def test_memory_does_not_grow_with_the_number_of_silos() -> None:
    """ResNet-50's levels of two images of 800x1216."""
    one, three, seven = (activations(n, True) for n in (1, 3, 7))
    assert three <= 1.01 * one  # what the replay of each norm needs: vectors
    assert seven <= 1.01 * one
    stored_one, stored_three = activations(1, False), activations(3, False)
    assert stored_three > 1.5 * stored_one
    assert one < stored_one


def test_edges_begin_with_a_variance_that_does_not_depend_on_their_number() -> None:
    for num_repeats in (1, 8):
        module = neck(num_repeats=num_repeats, num_outs=4)
        module.init_weights()
        with torch.no_grad():
            outputs = module([torch.randn(4, c, 64 >> i, 64 >> i) for i, c in enumerate(CHANNELS)])
        assert all(0.8 < float(y.std()) < 2 for y in outputs)


def test_every_level_reaches_every_output() -> None:
    module = neck(num_repeats=1, num_outs=4).eval()
    for source in range(4):
        x = levels()
        x[source].requires_grad_()
        for output in module(x):
            (grad,) = torch.autograd.grad(output.sum(), x[source], retain_graph=True)
            assert grad.abs().max() > 0


def test_outputs_are_contiguous_for_roi_align() -> None:
    x = [level.contiguous(memory_format=torch.channels_last) for level in levels()]
    assert all(y.is_contiguous() for y in neck()(x))


def test_export() -> None:
    module = neck().eval()
    program = torch.export.export(module, (levels(),), strict=False)
    with torch.no_grad():
        assert_same(program.module()(levels()), module(levels()))


def test_in_front_of_another_networks_levels() -> None:
    """timm's ResNet: the gradient of the image's first convolution comes through the neck."""
    import timm

    backbone = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4))
    model = nn.Sequential(backbone, RevSiloNeck(backbone.feature_info.channels(), 16, 5))
    sum(y.mean() for y in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_repeats=0), "num_repeats must be 1 at least, got 0"),
        (dict(start_level=3), r"fuses two levels at least, got 1: in_channels=\[6, 8, 10, 12\], start_level=3"),
        (dict(num_outs=3), "num_outs=3 is less than the 4 levels"),
        (dict(add_extra_convs="on_top"), "add_extra_convs must be a bool or one of .*, got 'on_top'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neck(**options)


def test_levels_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="in_channels has 4 levels, the backbone gave 3"):
        neck()(levels()[:3])
    x = levels()
    x[3] = torch.randn(2, 12, 5, 4)
    with pytest.raises(ValueError, match="level 3 is 5x4, which is not level 0's 32x32 divided by 8.*pad_size_divisor"):
        neck()(x)
