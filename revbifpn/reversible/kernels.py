"""Operators and their derivatives, by hand: what lean forms are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_aten = torch.ops.aten


class Activation(NamedTuple):
    """An element-wise function.

    Attributes:
        apply: the function.
        apply_: the same, written over its argument.
        backward: gradient of the output, input -> gradient of the input.
    """

    apply: Callable[[Tensor], Tensor]
    apply_: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _sigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    y = torch.sigmoid(x)
    return grad * y * (1 - y)


def _hardsigmoid(x: Tensor) -> Tensor:
    """Torch has no derivative of hardsigmoid's derivative, which stored mode's double backward needs."""
    return F.relu6(x + 3) / 6 if torch.is_grad_enabled() else F.hardsigmoid(x)


_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Hardswish: Activation(
        F.hardswish, lambda x: F.hardswish(x, inplace=True), lambda grad, x: _aten.hardswish_backward.default(grad, x)
    ),
    nn.Hardsigmoid: Activation(
        _hardsigmoid, lambda x: F.hardsigmoid(x, inplace=True), lambda grad, x: _aten.hardsigmoid_backward.default(grad, x)
    ),
    nn.ReLU: Activation(torch.relu, torch.relu_, lambda grad, x: _aten.threshold_backward.default(grad, x, 0)),
    nn.SiLU: Activation(F.silu, lambda x: F.silu(x, inplace=True), lambda grad, x: _aten.silu_backward.default(grad, x)),
    nn.Sigmoid: Activation(torch.sigmoid, torch.sigmoid_, _sigmoid_backward),
}
IDENTITY = Activation(lambda x: x, lambda x: x, lambda grad, x: grad)


def activation(module: nn.Module | None) -> Activation | None:
    """The derivative's table entry of an activation module; None for one that is not written out."""
    return IDENTITY if module is None or type(module) is nn.Identity else _ACTIVATIONS.get(type(module))


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)`` without a call where nothing changes."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def conv(module: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """The convolution that ``module`` is, with another weight.

    On a CPU oneDNN is slow to call: a pointwise convolution in channels_last is a product of matrices, and a depthwise one of
    a single pixel scales it.
    """
    if device_type(x) == "cpu":
        if _is_pointwise(module, x):
            return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)
        if _is_one_pixel(module, x):
            return x * _centre(module, weight)
    return torch.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)  # type: ignore[arg-type]


def conv_backward(
    module: nn.Conv2d, grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`conv` towards its input and its weight."""
    if not (wants_x or wants_weight):
        return None, None
    by_hand: Tensor | None = None
    if device_type(x) == "cpu":
        if _is_pointwise(module, x):
            return _pointwise_backward(grad, x, weight, wants_x, wants_weight)
        if _is_one_pixel(module, x):
            return _one_pixel_backward(module, grad, x, weight, wants_x, wants_weight)
        if wants_weight and _is_small_depthwise(module, x):
            by_hand = _small_depthwise_weight_grad(module, grad, x)
    dx, dweight, _ = _aten.convolution_backward.default(
        grad, x, weight, None, module.stride, module.padding, module.dilation, False, [0, 0], module.groups,
        [wants_x, wants_weight and by_hand is None, False],
    )  # fmt: skip
    return dx, dweight if by_hand is None else by_hand


def _is_pointwise(module: nn.Conv2d, x: Tensor) -> bool:
    return (
        module.kernel_size == module.stride == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _pointwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    dy = grad.permute(0, 2, 3, 1)
    rows = dy.reshape(-1, dy.shape[3])
    dx = (dy @ weight.flatten(1)).permute(0, 3, 1, 2) if wants_x else None
    dweight = (rows.t() @ x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])).view_as(weight) if wants_weight else None
    return dx, dweight


def _is_depthwise(module: nn.Conv2d) -> bool:
    """Stride 1 and "same" padding too."""
    return (
        module.groups == module.in_channels == module.out_channels
        and module.stride == module.dilation == (1, 1)
        and module.kernel_size == tuple(2 * int(pad) + 1 for pad in module.padding)
    )


def _is_one_pixel(module: nn.Conv2d, x: Tensor) -> bool:
    return x.shape[2] == x.shape[3] == 1 and _is_depthwise(module)


def _centre(module: nn.Conv2d, weight: Tensor) -> Tensor:
    """The only tap of a "same" convolution that meets a single pixel, (C, 1, 1)."""
    return weight[:, :, int(module.padding[0]), int(module.padding[1])].unsqueeze(2)


def _one_pixel_backward(
    module: nn.Conv2d, grad: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    dweight = None
    if wants_weight:
        dweight = torch.zeros_like(weight)
        _centre(module, dweight).copy_((grad * x).sum(0))
    return grad * _centre(module, weight) if wants_x else None, dweight


def _is_small_depthwise(module: nn.Conv2d, x: Tensor) -> bool:
    """Whether :func:`_small_depthwise_weight_grad` saves memory that counts.

    oneDNN takes dozens to hundreds of partial sums of the whole weight for it, however small the image.
    """
    return x.shape[2] * x.shape[3] <= 64 and x.numel() >= 2**15 and _is_depthwise(module)


def _small_depthwise_weight_grad(module: nn.Conv2d, grad: Tensor, x: Tensor) -> Tensor:
    """``dw[c, i, j] = sum over n, h, w of grad[n, c, h, w] * x[n, c, h + i - pad, w + j - pad]``, a kernel row at a time."""
    (rows, columns), height = module.kernel_size, x.shape[2]
    pad, pad_w = rows // 2, columns // 2
    wide = F.pad(x, (pad_w, pad_w, 0, 0)).permute(0, 2, 3, 1)
    n, h, w, c = wide.stride()
    windows = wide.as_strided((x.shape[0], height, columns, x.shape[3], x.shape[1]), (n, h, w, w, c))
    last = grad.permute(0, 2, 3, 1).unsqueeze(2)
    dweight = x.new_zeros(rows, columns, x.shape[1])
    for row in range(max(0, pad - height + 1), min(rows, pad + height)):
        shift = row - pad
        inside = slice(max(0, -shift), height - max(0, shift))
        shifted = slice(max(0, shift), height - max(0, -shift))
        torch.sum(last[:, inside] * windows[:, shifted], (0, 1, 3), out=dweight[row])
    return dweight.permute(2, 0, 1).unsqueeze(1)


def batch_norm(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm by the batch's statistics -> value, mean, reciprocal standard deviation."""
    return torch.native_batch_norm(z, gamma, beta, None, None, True, 0.0, eps)


def batch_norm_backward(
    grad: Tensor, z: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`batch_norm` towards ``z``, ``gamma`` and ``beta``."""
    grad = _laid_out_as(grad, z)
    result: tuple[Tensor, Tensor, Tensor] = _aten.native_batch_norm_backward.default(
        grad, z, gamma, None, None, mean, rstd, True, eps, [True, True, True]
    )
    return result


def _laid_out_as(grad: Tensor, z: Tensor) -> Tensor:
    """``grad`` with the strides of ``z``, if the two differ in dimensions of size 1 alone.

    Such strides mean nothing, but torch chooses kernels by them, which differ in the last bits: in an image of one pixel,
    whose gradient was computed in another way in stored mode, gradients of the exact mode would not be stored mode's.
    """
    same = all(ours == theirs or size == 1 for ours, theirs, size in zip(grad.stride(), z.stride(), z.shape, strict=True))
    return grad.as_strided(z.shape, z.stride()) if same and grad.stride() != z.stride() else grad


def upsample(x: Tensor, scale: float) -> Tensor:
    """Bilinear upsampling (align_corners false), (N, C, H, W) -> (N, C, scale * H, scale * W)."""
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def upsample_backward(grad: Tensor, scale: float, height: int, width: int) -> Tensor:
    """Gradient of :func:`upsample` towards its input of ``height`` x ``width``."""
    dx: Tensor = _aten.upsample_bilinear2d_backward.default(
        grad, grad.shape[2:], [*grad.shape[:2], height, width], False, scale, scale
    )
    return dx


def chunk_bytes(like: Tensor, frugal: bool, room: float = 0.0) -> float:
    """How large a tensor has to be for a call of its own: it fits a core's cache, or fills the device.

    Args:
        frugal, room: see :class:`.Setting`. On a CPU calls are worth a seventh of the room, which costs a tenth of the memory.
    """
    if frugal:
        return 2**18 if device_type(like) == "cpu" else 2**20
    return max(2**20, room / 7) if device_type(like) == "cpu" else 2**22


_stands_for: list[str] = []


def device_type(tensor: Tensor) -> str:
    """``"cpu"``, ``"cuda"``, ...: where the tensor is, or would be in the step that is predicted with it."""
    return _stands_for[-1] if _stands_for else tensor.device.type


@contextmanager
def standing_for(device: str) -> Iterator[None]:
    """While active, all tensors stand for tensors on a device: what runs on them is what would run there."""
    _stands_for.append(device)
    try:
        yield
    finally:
        _stands_for.pop()
