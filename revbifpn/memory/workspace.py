"""What operators take for themselves on CPU, beside their outputs, while they run.

A tracker sees what operators return, not what they allocate inside. On CPU that is mostly oneDNN's convolutions, which bring
images and weights into a blocked layout (channels in blocks of 16 with AVX-512, 8 with AVX2) where these are not
``channels_last``. The rules here were found by reading the allocator's events of single operators, with AVX-512 and with AVX2,
and are tested against them. They hold for float32, and in half precision by element size.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def cpu_workspace(func: Any, args: tuple[Any, ...], result: Any) -> int:
    """Return the highest number of bytes that a CPU operator holds beyond its outputs; 0 for operators without a rule.

    Args:
        func: an ``aten`` operator.
        args: its arguments (real or fake tensors among them).
        result: what it returned.
    """
    rule = _RULES.get(func)
    return rule(args, result) if rule is not None else 0


def _convolution(args: tuple[Any, ...], result: Any) -> int:
    x, weight, _bias, stride, _padding, dilation, transposed, _out_padding, groups = args[:9]
    if x.ndim != 4 or transposed:
        return 0
    y = result
    if not uses_onednn(x, weight, stride, dilation, groups):
        return _columns(x, weight, y)
    channels_last = _is_channels_last(x, weight)
    copied = 0 if _fits(x, channels_last) else _bytes(x)
    if channels_last:
        return copied + _blocked_weight(weight, groups)
    if max(weight.shape[2:]) > _WIDEST_KERNEL:  # a kernel for plain layouts
        return copied
    reordered = copied + _blocked(x, groups) + _blocked_weight(weight, groups) + _blocked_output(y)
    return max(reordered, _blocked_output(y) + _bytes(y)) - _bytes(y)


def _convolution_backward(args: tuple[Any, ...], result: Any) -> int:
    grad, x, weight, _bias_sizes, stride, padding, dilation, transposed, _out_padding, groups, mask = args[:11]
    if x.ndim != 4 or transposed:
        return 0
    if not uses_onednn(x, weight, stride, dilation, groups):
        return _columns(x, weight, grad)
    depthwise = groups == x.shape[1] and groups > 1
    channels_last = _is_channels_last(x, weight)
    grad_copied = 0 if _fits(grad, channels_last) else _bytes(grad)
    x_copied = 0 if _fits(x, channels_last) else _bytes(x)
    kept = (_bytes(x) if mask[0] else 0) + (_bytes(weight) if mask[1] else 0)
    blocked_weight = _blocked_weight(weight, groups)
    small = max(weight.shape[2:]) <= 3
    peak = 0
    if mask[0]:
        inside = blocked_weight
        if not channels_last:
            inside = max(_blocked_output(grad) + blocked_weight, _bytes(x)) + _blocked(x, groups)
        else:
            inside += _bytes(x)
        peak = grad_copied + inside
    if mask[1]:
        inside = _bytes(x) if mask[0] else 0
        unfolded = _unfolded_sums(grad, x, weight, stride, padding, channels_last) if depthwise else 0
        if unfolded:
            inside += unfolded + _bytes(weight)
        elif channels_last:
            split = depthwise and 3 < max(weight.shape[2:]) <= _WIDEST_KERNEL and groups % _block() == 0
            parts = _block() ** 2 + 1 if split else 1 if depthwise else 2  # sums of a depthwise weight's gradient
            inside += max(parts * _bytes(weight), blocked_weight) + _bytes(weight)
            if split and weight.element_size() < 4:  # the sums, and what is summed, are there in float32 too
                inside += 4 * (parts * weight.numel() + x.numel() + grad.numel())
        elif depthwise and (not small or groups == 1):
            inside += _bytes(weight)
        else:
            inside += blocked_weight + max(_blocked(x, groups) + _blocked_output(grad), _bytes(weight))
        peak = max(peak, grad_copied + x_copied + inside)
    return max(0, peak - kept)


def _unfolded_sums(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], channels_last: bool) -> int:
    """With AVX2, a depthwise weight's gradient where oneDNN has no kernel for it: each thread unfolds a channel."""
    sides = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    has_kernel = max(weight.shape[2:]) <= _WIDEST_KERNEL and all(side >= k + -pad % step for side, k, step, pad in sides)
    if _block() == 16 or has_kernel:
        return 0
    columns = prod(weight.shape[2:]) * prod(grad.shape[2:]) + (prod(x.shape[2:]) if channels_last else 0)
    return torch.get_num_threads() * (4 * _bytes(weight) + columns * x.element_size())


#: Depthwise kernels wider than this have no blocked implementation.
_WIDEST_KERNEL = 14


def uses_onednn(x: Tensor, weight: Tensor, stride: list[int], dilation: list[int], groups: int) -> bool:
    """Return whether PyTorch hands a CPU convolution to oneDNN (it keeps small and single-threaded 1x1 ones)."""
    if x.dtype != torch.float32:
        return True
    worth = max(stride) > 1 or max(dilation) > 1 or x.shape[0] >= 16 or max(weight.shape[2:]) > 1
    worth = worth or torch.get_num_threads() > 1
    large = groups > 1 or min(weight.shape[2:]) > 3 or x.shape[0] > 1 or x.numel() > 20480
    return worth and large


def _columns(x: Tensor, weight: Tensor, y: Tensor) -> int:
    """PyTorch's own convolution unfolds its input, unless the kernel is 1x1."""
    kernel = weight.shape[2] * weight.shape[3]
    return 0 if kernel == 1 else x.shape[0] * weight.shape[1] * kernel * y.shape[2] * y.shape[3] * x.element_size()


def _batch_norm_backward(args: tuple[Any, ...], result: Any) -> int:
    grad, x = args[:2]
    same_layout = any(_fits(grad, layout) and _fits(x, layout) for layout in (False, True) if x.ndim == 4 or not layout)
    return _bytes(x) if args[-1][0] and same_layout else 0


def _reduction(args: tuple[Any, ...], result: Any) -> int:
    """A reduction in another dtype converts its input first."""
    x = args[0]
    return x.numel() * result.element_size() if result.dtype != x.dtype and result.dtype.is_floating_point else 0


def _upsample(args: tuple[Any, ...], result: Any) -> int:
    x = args[0]
    small = result.shape[-1] + result.shape[-2] <= 128  # these are computed in channels_last
    return _bytes(x) + _bytes(result) if small and not _is_channels_last(x) else 0


def _contiguous_copy(args: tuple[Any, ...], result: Any) -> int:
    return 0 if args[0].is_contiguous() else _bytes(args[0])


_RULES: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution_backward,
    _aten.native_batch_norm_backward.default: _batch_norm_backward,
    _aten.upsample_bilinear2d.default: _upsample,
    _aten.upsample_nearest2d.default: _upsample,
    _aten.sum.default: _reduction,
    _aten.linalg_vector_norm.default: _reduction,
    _aten.native_layer_norm.default: _contiguous_copy,
    _aten._softmax.default: _contiguous_copy,
}


def _block() -> int:
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


def _padded(channels: int) -> int:
    """Channels of the blocked layout: whole blocks."""
    block = _block()
    return -(-channels // block) * block


def _stays_plain(channels: int, groups: int) -> bool:
    """Images of up to three channels are read as they are."""
    return groups == 1 and channels <= 3


def _blocked(image: Tensor, groups: int) -> int:
    return 0 if _stays_plain(image.shape[1], groups) else _blocked_output(image)


def _blocked_output(image: Tensor) -> int:
    n, c, h, w = image.shape
    return n * _padded(c) * h * w * image.element_size()


def _blocked_weight(weight: Tensor, groups: int) -> int:
    out, per_group, h, w = weight.shape
    inputs = per_group if groups > 1 or _stays_plain(per_group, groups) else _padded(per_group)
    return _padded(out) * inputs * h * w * weight.element_size()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_channels_last(*tensors: Tensor) -> bool:
    """Return whether the first tensor's strides, dense or not, or the weight's, are those of channels_last."""
    return any(_has_channels_last_strides(t) for t in tensors)


def _has_channels_last_strides(tensor: Tensor) -> bool:
    _, c, h, w = tensor.stride()
    return c == 1 and tensor.shape[1] > 1 and w >= tensor.shape[1] and h >= w and not tensor.is_contiguous()


def _fits(tensor: Tensor, channels_last: bool) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
