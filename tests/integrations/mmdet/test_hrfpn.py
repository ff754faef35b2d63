"""LeanHRFPN against MMDetection's HRFPN: values, gradients, arguments, what it keeps and what it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmdet.models.necks import HRFPN
from torch import Tensor
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from revbifpn.integrations.mmdet import LeanHRFPN
from tests.integrations.mmdet.common import assert_same, outputs_and_gradients, same_weights

CHANNELS = [6, 8, 10, 12]


def levels(height: int = 32, width: int = 48, channels: list[int] = CHANNELS, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, height >> i, width >> i, generator=generator) for i, c in enumerate(channels)]


def necks(**options: Any) -> tuple[HRFPN, LeanHRFPN]:
    torch.manual_seed(0)
    options = dict(in_channels=CHANNELS, out_channels=16) | options
    plain, lean = HRFPN(**options), LeanHRFPN(**options)
    same_weights(plain, lean)
    return plain, lean


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(pooling_type="MAX"),
        dict(num_outs=1),
        dict(num_outs=2),
        dict(stride=2),
        dict(with_cp=True),
        dict(in_channels=[6]),
        dict(in_channels=[18, 36, 72, 144]),  # HRNetV2p-W18
    ],
    ids=str,
)
def test_values_and_gradients_are_mmdetections(options: dict[str, Any]) -> None:
    plain, lean = necks(**options)
    x = levels(channels=plain.in_channels)
    ours, our_grads = outputs_and_gradients(lean, x, lean)
    theirs, their_grads = outputs_and_gradients(plain, x, plain)
    assert_same(ours, theirs)
    assert_same(our_grads, their_grads)


@pytest.mark.parametrize("pooling_type", ["AVG", "MAX"])
def test_sides_that_pooling_does_not_divide(pooling_type: str) -> None:
    """A 25 pixels high map, pooled by 2, 4 and 8 or by 2 three times: the same pixels are left out."""
    plain, lean = necks(in_channels=[6], num_outs=4, pooling_type=pooling_type)
    x = levels(25, 31, channels=[6])
    assert_same(outputs_and_gradients(lean, x, lean)[0], outputs_and_gradients(plain, x, plain)[0])


def test_without_gradients() -> None:
    plain, lean = necks()
    with torch.no_grad():
        assert_same(lean(levels()), plain(levels()))


def test_autocast() -> None:
    """Half-precision terms are rounded one by one, 2**-9 each."""
    plain, lean = necks()
    found = []
    for neck in (lean, plain):
        with torch.autocast("cpu", torch.bfloat16):
            outputs, grads = outputs_and_gradients(neck, levels(), neck)
        assert {y.dtype for y in outputs} == {torch.bfloat16}
        found.append([*outputs, *grads])
    assert_same(*found, rtol=2e-2)


@pytest.mark.parametrize("kind", ["conv_cfg", "hook", "parametrization"])
def test_what_is_unusual_is_mmdetections_own(kind: str) -> None:
    plain, lean = necks(**({"conv_cfg": dict(type="ConvWS")} if kind == "conv_cfg" else {}))
    seen: list[tuple[int, ...]] = []
    for neck in (plain, lean):
        if kind == "hook":
            neck.reduction_conv.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
        if kind == "parametrization":
            parametrizations.weight_norm(neck.reduction_conv.conv)
    ours, theirs = (outputs_and_gradients(neck, levels(), neck) for neck in (lean, plain))
    assert all(torch.equal(a, b) for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True))
    if kind == "hook":
        assert seen == [(2, sum(CHANNELS), 32, 48)] * 2


def test_reduction_of_s3_takes_a_seventh_of_the_work() -> None:
    """25.3 GMACs an image at 800x1344 in HRFPN; the goal is 3.6 at most."""
    channels = [128, 160, 336, 848]
    found = []
    for kind in (LeanHRFPN, HRFPN):
        with torch.device("meta"):
            neck = kind(channels, 256, num_outs=1)
            x = [torch.empty(1, c, 200 >> i, 336 >> i) for i, c in enumerate(channels)]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            neck(x)
        found.append(counter.get_total_flops() / 2e9 - 256 * 256 * 9 * 200 * 336 / 1e9)  # without the 3x3 convolution
    assert 3 < found[0] <= 3.6
    assert found[1] == pytest.approx(25.3, abs=0.05)


def test_nothing_at_the_finest_stride_is_kept_but_the_input() -> None:
    _, lean = necks()
    x = [level.requires_grad_() for level in levels()]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        outputs = lean(x)
    finest = {t.untyped_storage()._cdata for t in kept if t.shape[-2:] == (32, 48)}
    assert finest == {x[0].untyped_storage()._cdata}
    assert len(outputs) == 5


def test_export_sees_plain_operators() -> None:
    plain, lean = necks()
    program = torch.export.export(lean.eval(), (levels(),), strict=False)
    with torch.no_grad():
        assert_same(program.module()(levels()), plain(levels()))


def test_levels_that_do_not_fit_are_named() -> None:
    _, lean = necks()
    with pytest.raises(ValueError, match=r"in_channels has 4 levels, the backbone gave 3"):
        lean(levels()[:3])
    x = levels()
    x[2] = x[2][..., :-1]
    with pytest.raises(ValueError, match=r"level 2 is 8x11, which is not level 0's 32x48 divided by 4.*pad_size_divisor"):
        lean(x)
