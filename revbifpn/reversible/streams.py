"""Streams: the tensors that reversible layers map, and small facts about them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from revbifpn.reversible.refusals import are_transforms_active

Streams = tuple[Tensor, ...]


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """channels_last or contiguous; a tensor that is both counts as contiguous, and so does one without an answer (vmap)."""
    if are_transforms_active():
        return torch.contiguous_format
    is_channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last and not tensor.is_contiguous() else torch.contiguous_format


def same_storage(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in one storage."""
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def check_count(streams: Sequence[object], expected: int, where: str) -> None:
    """Raise a ValueError that names ``where`` unless there are ``expected`` streams."""
    if len(streams) != expected:
        raise ValueError(f"{where}: expected {expected} stream{'s' if expected != 1 else ''}, got {len(streams)}")


def stream_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which streams are kept: float32 at least, since a sum in half precision cannot be taken back."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
