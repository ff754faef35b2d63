"""Forms: how an edge is *recorded* in the forward pass and *replayed* in the backward pass.

An edge is any module that maps one tensor to one tensor. Its form is chosen once, when a layer's plan is made:

- the *plain* form (:mod:`.plain`) takes any module and replays it under autograd;
- a *lean* form (:mod:`.lean`) knows its module's operators, keeps two vectors for each norm, and has its backward written out.

:func:`register_lean_form` teaches the engine a lean form for a block of your own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

#: What a parameter hangs on: the module's dictionary and the name in it.
Slot = tuple[dict[str, Any], str]


@dataclass(frozen=True)
class Setting:
    """What all edges of a pass share.

    Attributes:
        bits: fractional bits of the grid of the exact mode, in which a replay has to return the recorded value bit for bit.
        autocast: what autocast computes in, if it is on where the streams are.
        raised: whether the streams are in float32 because what came in was in half precision: edges then compute in the
            dtype of their own parameters.
        frugal: less memory in the replay, for some more time.
        room: bytes that an edge may keep of its replay beside chunks of the usual size; whoever keeps less works in larger
            chunks, which are faster.
        counters: norms' ``num_batches_tracked``, collected to be moved together.
    """

    bits: int | None = None
    autocast: torch.dtype | None = None
    raised: bool = False
    frugal: bool = False
    room: float = 0.0
    counters: list[Tensor] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether replays have to be exact."""
        return self.bits is not None

    def move_counters(self) -> None:
        """Count the batches of the norms that have run."""
        if self.counters:
            torch._foreach_add_(self.counters, 1)
            self.counters.clear()


def autocast_dtype(like: Tensor) -> torch.dtype | None:
    """What autocast computes in where ``like`` is; None if it is off."""
    kind = like.device.type
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else None


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Lean forms cast by themselves; autocast must not do it once more, or in a backward pass that happens to run in it."""
    return nullcontext() if autocast_dtype(like) is None else torch.autocast(like.device.type, enabled=False)


def own_dtype(edge: nn.Module, x: Tensor, setting: Setting) -> Tensor:
    """What an edge gets of a stream that was raised to float32: the stream in the dtype of the edge's parameters."""
    if not setting.raised or setting.autocast is not None or not x.is_floating_point():
        return x
    dtype = next((p.dtype for p in edge.parameters() if p.is_floating_point()), x.dtype)
    return x.to(dtype)


class EdgeCost(NamedTuple):
    """Of a stored edge: the bytes that it keeps, and the time that its replay saves, in bytes read or written meanwhile."""

    kept: int
    saved: float


class Form(ABC):
    """How one edge runs in a pass. A form holds no tensor and nothing of a pass.

    Args:
        edge: the module.

    Attributes:
        slots: where the edge's parameters hang, each parameter once.
    """

    def __init__(self, edge: nn.Module) -> None:
        self.edge = edge
        self.slots: list[Slot] = []

    def parameters(self) -> list[Tensor]:
        """The edge's parameters as they are now."""
        return [owner[name] for owner, name in self.slots]

    @abstractmethod
    def begin(self, setting: Setting, store: bool) -> Run:
        """What one pass knows of this edge; ``store`` asks it to keep what saves the replay its work."""

    def cost(self, shape: Sequence[int], itemsize: int) -> EdgeCost | None:
        """What it costs and saves to store the edge for a source of ``shape``; None if that is not known.

        Args:
            itemsize: bytes of a number.
        """
        return None


class Run(ABC):
    """One pass of one edge: recorded once, replayed once for each backward pass."""

    __slots__ = ()

    @abstractmethod
    def record(self, source: Tensor) -> Tensor:
        """The edge's value, without graph; running statistics move. A lean form returns memory of its own."""

    def kept(self) -> list[Tensor]:
        """Tensors of a stored edge, to be saved with the pass; :meth:`replay` gets them back."""
        return []

    @abstractmethod
    def replay(
        self, source: Tensor, params: Sequence[Tensor], kept: Sequence[Tensor], grad: Tensor | None, wants_source: bool
    ) -> Replay:
        """Begin a second run.

        Args:
            source: the value that :meth:`record` got.
            params: the parameters that :meth:`Form.parameters` returned then.
            kept: what :meth:`kept` returned.
            grad: gradient of the edge's value; None if nothing is to be differentiated.
            wants_source: whether the source takes a gradient.
        """

    def differentiable(self, source: Tensor, params: Sequence[Tensor]) -> Tensor:
        """The value once more as a differentiable function of its arguments, for derivatives of derivatives."""
        raise NotImplementedError


class Replay(ABC):
    """A second run: first its values, then its gradients, each in chunks of whole samples.

    ``values`` is to be exhausted before ``gradients`` is begun. A chunk is ``(rows, tensor)``, with a slice of the batch.
    """

    #: Whether the caller has no gradient of the source yet, so that the replay's may come in memory of its own.
    fresh = False

    @abstractmethod
    def values(self) -> Iterator[tuple[slice, Tensor]]:
        """The edge's value."""

    @abstractmethod
    def gradients(self) -> Iterator[tuple[slice, Tensor]]:
        """The gradient of the source, nothing if it was not wanted; when exhausted, :meth:`param_grads` is complete."""

    def source_grad(self) -> Tensor | None:
        """The memory in which the chunks of a :attr:`fresh` replay's gradient come, if there are several."""
        return None

    def whole_source_grad(self) -> Tensor | None:
        """Run :meth:`gradients` of a :attr:`fresh` replay: the source's gradient as a whole, which is the caller's."""
        whole: Tensor | None = None
        for _, chunk in self.gradients():
            whole = chunk
        shared = self.source_grad()
        return whole if shared is None else shared

    @abstractmethod
    def param_grads(self) -> list[Tensor | None]:
        """Gradients of the parameters, None where a parameter asks for none."""


Edge = TypeVar("Edge", bound=nn.Module)
_LEAN: dict[type[nn.Module], Callable[[Any], Form | None]] = {}


def register_lean_form(module_type: type[Edge], make: Callable[[Edge], Form | None]) -> None:
    """Use a lean form for modules of exactly this type.

    Args:
        module_type: subclasses are not meant, since they may compute something else.
        make: returns the form of a module, or None where the module is set up in a way that the form does not know; it then
            takes the plain form.

    Example::

        class Block(nn.Sequential):  # convolution, batch norm, ReLU
            ...

        register_lean_form(Block, lambda block: lean_chain(block, [ConvNorm(block[0], block[1], block[2])]))
    """
    _LEAN[module_type] = make


def lean_form(edge: nn.Module) -> Form | None:
    """The lean form of an edge; None if it has none, or if something hangs on it that a lean form would pass over."""
    make = _LEAN.get(type(edge))
    if make is None or any(map(is_unusual, edge.modules())):
        return None
    return make(edge)


def is_unusual(module: nn.Module) -> bool:
    """Whether calling ``module`` does more than its class says: hooks, a compiled call, a replaced ``forward``."""
    state = module.__dict__
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or state.get("_compiled_call_impl")
        or "forward" in state
        or hasattr(module, "parametrizations")
    )
