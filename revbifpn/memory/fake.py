"""A training step without data: what a network computes is fake (shapes only), all else is real.

Fake tensors (``torch._subclasses.FakeTensorMode``) have a shape, a dtype and a device, but no values, so a step of any size
runs in seconds. Operators that need values fail on them. Here only the model's weights and inputs are fake, and what is
computed from them; index arithmetic, anchors, matched targets, optimizer counters stay small real tensors, with values.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from revbifpn.reversible.fakes import fake_twin

#: A new tensor that depends on no other is made for real up to this size, in elements.
REAL_LIMIT = 1 << 22

_aten = torch.ops.aten


class UnsupportedOperatorError(RuntimeError):
    """A step cannot be predicted: one of its operators needs values, which fake tensors do not have."""


class FakeExecution:
    """Runs operators on fake tensors where one of their arguments is fake, for real elsewhere."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        # Storages of real tensors into which something fake was written: their values mean nothing any more.
        self._tainted: dict[int, weakref.ref[Any]] = {}

    def fake(self, tensor: Tensor) -> Tensor:
        """Return a fake twin of a tensor; see :func:`.fake_twin`."""
        return fake_twin(self.mode, tensor)

    def fake_all(self, value: Any) -> Any:
        """Return the same value with fake twins for its tensors of floating point; others may be indices, and stay real."""
        if isinstance(value, Tensor):
            return self.fake(value) if value.is_floating_point() or value.is_meta else value
        if isinstance(value, Mapping):
            return {key: self.fake_all(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.fake_all(item) for item in value)
        return value

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = list(_flatten((args, kwargs)))
        fake = any(self._is_fake(t) for t in tensors)
        if not fake and (tensors or _factory_size(func, args) <= REAL_LIMIT):
            return func(*args, **kwargs)
        args = _index_without_masks(func, args)
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.rand(1)  # a fake operator draws nothing, but whoever keeps random states looks whether one did
        try:
            with self.mode:
                result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
            raise UnsupportedOperatorError(
                f"operator {func.name().partition('.')[0]} needs the values of its tensors, and a prediction has none: "
                f"{_why(error)}"
            ) from error
        except NotImplementedError as error:
            raise UnsupportedOperatorError(f"operator {func.name()} does not run on fake tensors: {error}") from error
        return self._real_if_in_place(func, args, result)

    def _is_fake(self, tensor: Tensor) -> bool:
        return isinstance(tensor, FakeTensor) or tensor.untyped_storage()._cdata in self._tainted

    def _taint(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        self._tainted[key] = weakref.ref(storage, lambda _: self._tainted.pop(key, None))

    def _real_if_in_place(self, func: Any, args: tuple[Any, ...], result: Any) -> Any:
        """An in-place operator returns its own argument: a real tensor stays the same object."""
        if not args or not isinstance(args[0], Tensor) or isinstance(args[0], FakeTensor):
            return result
        alias = func._schema.arguments[0].alias_info if func._schema.arguments else None
        if alias is not None and alias.is_write:
            self._taint(args[0])
            return args[0]
        return result


def _flatten(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten(item)
    elif isinstance(value, dict):
        yield from _flatten(list(value.values()))


def _factory_size(func: Any, args: tuple[Any, ...]) -> int:
    size = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    product = 1
    for side in size:
        product *= side if isinstance(side, int) else 1
    return product


def _index_without_masks(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Indexing a fake tensor with a real mask: the mask's positions are known, so they take its place."""
    if func not in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor):
        return args
    indices: list[Tensor | None] = []
    for index in args[1]:
        if isinstance(index, Tensor) and not isinstance(index, FakeTensor) and index.dtype in (torch.bool, torch.uint8):
            indices.extend(index.nonzero(as_tuple=True))
        else:
            indices.append(index)
    return (args[0], indices, *args[2:])


def _why(error: Exception) -> str:
    if isinstance(error, DataDependentOutputException):
        return "its result is a number"
    if isinstance(error, DynamicOutputShapeException):
        return "the size of its result depends on them"
    return "it has no shape rule (a compiled extension without a fake implementation)"


@contextmanager
def fake_weights(model: nn.Module, execution: FakeExecution) -> Iterator[None]:
    """Hang fake twins of all parameters and buffers into ``model``, and put the real ones back at the end.

    Tied weights stay tied; the real ones are not touched.
    """
    saved: list[tuple[dict[str, Any], str, Tensor]] = []
    twins: dict[int, Tensor] = {}
    try:
        for module in model.modules():
            owners: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for owner in owners:
                for name, tensor in owner.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in twins:
                        twin = execution.fake(tensor.detach())
                        is_param = isinstance(tensor, nn.Parameter)
                        twins[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_param else twin
                    saved.append((owner, name, tensor))
                    owner[name] = twins[id(tensor)]
        yield
    finally:
        for owner, name, tensor in saved:
            owner[name] = tensor
