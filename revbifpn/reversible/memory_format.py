"""The memory format in which streams are computed, and the one in which they are handed back.

A tensor of (N, C, H, W) lies in memory either contiguous, which is torch's default, or channels_last. Values are the same up
to the order of sums; time is not: on a CPU a training step is a third faster in channels_last, whatever the images come in.
Weights need no conversion: a depthwise or pointwise convolution's weight is laid out alike in both formats.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from revbifpn.reversible.kernels import device_type
from revbifpn.reversible.streams import memory_format_of

#: "auto" computes in channels_last on a CPU, and elsewhere in what comes in, as "keep" does everywhere.
MemoryFormat = Literal["auto", "keep", "channels_last", "contiguous"]

_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def check_memory_format(memory_format: str) -> MemoryFormat:
    """Return ``memory_format``.

    Raises:
        ValueError: if it is no :data:`MemoryFormat`.
    """
    if memory_format not in get_args(MemoryFormat):
        known = ", ".join(map(repr, get_args(MemoryFormat)))
        raise ValueError(f"memory_format must be one of {known}, got {memory_format!r}")
    return cast(MemoryFormat, memory_format)


def format_to_compute_in(choice: MemoryFormat, like: Tensor) -> torch.memory_format:
    """The memory format that ``choice`` means for a tensor such as ``like``."""
    if choice == "auto":
        return torch.channels_last if device_type(like) == "cpu" else memory_format_of(like)
    return memory_format_of(like) if choice == "keep" else _FORMATS[choice]


def in_format(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``tensor.contiguous(memory_format=...)``, of which the gradient comes back in the format of ``tensor``.

    torch's own hands the gradient on as it is, so that the backward pass would compute in a mixture of both formats.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or not tensor.requires_grad or not torch.is_grad_enabled() or memory_format_of(tensor) == memory_format:
        return tensor.contiguous(memory_format=memory_format)
    converted: Tensor = _InFormat.apply(tensor, memory_format)
    return converted


class _InFormat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
        ctx.memory_format = memory_format_of(tensor)
        ctx.set_materialize_grads(False)  # DDP asks for the gradients of outputs that the loss leaves out: they stay None
        return tensor.contiguous(memory_format=memory_format)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        grad = grads[0]
        return None if grad is None else grad.contiguous(memory_format=ctx.memory_format), None
