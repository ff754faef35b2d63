"""What predictions of memory share: twins of tensors without values, and which storages are alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

Record = TypeVar("Record")


def fake_twin(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A tensor's twin without values, of its shape, strides, dtype and device; a meta tensor's is on the CPU."""
    if not tensor.is_meta:
        return mode.from_tensor(tensor, static_shapes=True)
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


class LiveStorages(Generic[Record]):
    """The storages that are alive, each with a record of the user's.

    Args:
        freed: is told of the record of each storage that is freed.
    """

    def __init__(self, freed: Callable[[Record], None]) -> None:
        self._freed = freed
        self._live: dict[int, tuple[Record, weakref.ref[Any]]] = {}

    def record_of(self, tensor: Tensor) -> Record | None:
        """The record of the tensor's storage; None if it was not added."""
        entry = self._live.get(tensor.untyped_storage()._cdata)
        return None if entry is None else entry[0]

    def add(self, tensor: Tensor, record: Record) -> None:
        """Watch the tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._live[key] = record, weakref.ref(storage, lambda _: self._forget(key))

    def _forget(self, key: int) -> None:
        record, _ = self._live.pop(key)
        self._freed(record)
