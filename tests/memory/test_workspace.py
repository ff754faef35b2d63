"""The rules for what CPU operators take inside, against the allocator's events of single operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from revbifpn.memory.workspace import cpu_workspace, uses_onednn

from .rules import AVX512, has_rules

aten = torch.ops.aten
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def measured_workspace(func: object, *args: object) -> tuple[int, object]:
    run = lambda: func(*args)  # type: ignore[operator] # noqa: E731
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        result = run()
    events = recording.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = peak = 0
    for _, nbytes in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        live += nbytes
        peak = max(peak, live)
    outputs = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, Tensor)]
    return peak - sum(t.untyped_storage().nbytes() for t in outputs), result


def check(func: object, args: tuple[object, ...]) -> None:
    """Within 3% of what the step holds for the operator: its inputs, its outputs, its workspace."""
    measured, result = measured_workspace(func, *args)
    tensors = [t for t in (*args, *(result if isinstance(result, (tuple, list)) else [result])) if isinstance(t, Tensor)]
    held = sum(t.nbytes for t in tensors) + measured
    assert cpu_workspace(func, args, result) == pytest.approx(measured, abs=0.03 * held)


# (batch, in channels, side, out channels, kernel, stride, groups): what RevBiFPN, EfficientNet, ResNet and HRNet are made of.
CONVOLUTIONS = [
    (4, 24, 32, 24, 3, 1, 24),
    (4, 32, 32, 32, 3, 1, 32),
    (4, 48, 32, 48, 5, 1, 48),
    (4, 48, 32, 48, 5, 2, 48),
    (4, 48, 32, 48, 15, 8, 48),
    (8, 160, 8, 160, 5, 1, 160),
    (4, 48, 32, 24, 1, 1, 1),
    (16, 24, 32, 48, 1, 1, 1),
    (4, 64, 32, 64, 3, 1, 1),
    (4, 512, 4, 512, 3, 1, 1),
    (4, 18, 32, 18, 3, 1, 1),
    (8, 64, 28, 1, 1, 1, 1),
]
# Images smaller than the kernel, and others: read with AVX2 alone.
WITH_AVX2 = [(4, 80, 4, 80, 5, 1, 80), (4, 320, 2, 320, 5, 1, 320), (4, 64, 16, 64, 7, 4, 64)]


@has_rules
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", CONVOLUTIONS + ([] if AVX512 else WITH_AVX2), ids=str)
def test_convolutions(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    n, c, side, out, kernel, stride, groups = shape
    x = torch.randn(n, c, side, side).contiguous(memory_format=layout)
    weight = torch.randn(out, c // groups, kernel, kernel).contiguous(memory_format=layout)
    pad = (kernel - 1) // 2
    settings = ([stride, stride], [pad, pad], [1, 1], False, [0, 0], groups)
    y = aten.convolution.default(x, weight, None, *settings)
    check(aten.convolution.default, (x, weight, None, *settings))
    if AVX512 and kernel == 15 and layout == torch.channels_last:
        return  # its backward has no rule: it takes about four weights more for each thread, 0.1 MB here
    grad = torch.randn_like(y)
    check(aten.convolution_backward.default, (grad, x, weight, [0], *settings, [True, True, False]))


@pytest.mark.skipif(not AVX512, reason="read with AVX-512 alone")
@pytest.mark.parametrize(("channels", "side", "stride"), [(320, 2, 1), (160, 8, 1), (128, 8, 2), (80, 4, 1)])
def test_depthwise_gradients_in_bfloat16(channels: int, side: int, stride: int) -> None:
    like = dict(dtype=torch.bfloat16)
    x = torch.randn(8, channels, side, side, **like).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, 5, 5, **like)
    settings = ([stride, stride], [2, 2], [1, 1], False, [0, 0], channels)
    grad = torch.randn_like(aten.convolution.default(x, weight, None, *settings))
    check(aten.convolution_backward.default, (grad, x, weight, [0], *settings, [True, True, False]))


@has_rules
@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_half_of_a_split_is_copied(layout: torch.memory_format) -> None:
    x = torch.randn(4, 48, 32, 32).contiguous(memory_format=layout)[:, :24]
    weight = torch.randn(24, 1, 3, 3).contiguous(memory_format=layout)
    settings = ([1, 1], [1, 1], [1, 1], False, [0, 0], 24)
    check(aten.convolution.default, (x, weight, None, *settings))
    grad = torch.randn_like(x)
    check(aten.convolution_backward.default, (grad, x, weight, [0], *settings, [True, True, False]))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "shape", [(4, 8, 16, 16, 1, 1), (16, 8, 16, 16, 1, 1), (4, 8, 16, 16, 3, 1), (1, 8, 16, 16, 1, 1), (4, 8, 16, 16, 1, 8)]
)
def test_which_convolutions_go_to_onednn(shape: tuple[int, ...], threads: int) -> None:
    n, c, side, out, kernel, groups = shape
    x, weight = torch.randn(n, c, side, side), torch.randn(out, c // groups, kernel, kernel)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        backend = torch._C._select_conv_backend(x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], groups, [0])
        assert uses_onednn(x, weight, [1, 1], [1, 1], groups) == ("Mkldnn" in str(backend))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_norms_upsampling_and_reductions(layout: torch.memory_format) -> None:
    x = torch.randn(4, 64, 32, 32).contiguous(memory_format=layout)
    weight, mean, var = torch.ones(64), torch.zeros(64), torch.ones(64)
    y, saved_mean, saved_std = aten.native_batch_norm.default(x, weight, weight, mean, var, True, 0.1, 1e-3)
    for mask in ([True, True, True], [False, True, True]):
        args = (torch.randn_like(y), x, weight, mean, var, saved_mean, saved_std, True, 1e-3, mask)
        check(aten.native_batch_norm_backward.default, args)
    strided = torch.randn(4, 128, 32, 32).contiguous(memory_format=layout)[:, :64]
    args = (strided, x, weight, mean, var, saved_mean, saved_std, True, 1e-3, [True, True, True])
    check(aten.native_batch_norm_backward.default, args)
    for side in (64, 128):
        check(aten.upsample_bilinear2d.default, (x, [side, side], False))
        check(aten.upsample_nearest2d.default, (x, [side, side]))
    measured, result = measured_workspace(lambda: aten.sum.default(x, dtype=torch.float64))
    assert cpu_workspace(aten.sum.default, (x,), result) == pytest.approx(measured, rel=0.03)


def test_operators_without_a_rule_take_nothing() -> None:
    x = torch.randn(4)
    assert cpu_workspace(aten.add.Tensor, (x, x), x + x) == 0
