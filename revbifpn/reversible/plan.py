"""A layer's plan: which edges it has, in which order, and in which form each of them runs.

A plan is made when a layer first runs in a pass and serves until the layer's structure changes: an edge, a parameter or a hook
that comes or goes, ``requires_grad``, train or eval mode, a parametrisation, a compiled call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from revbifpn.reversible.forms import Form, lean_form
from revbifpn.reversible.plain import PlainForm, modules_in_use


class Coupling(NamedTuple):
    """``parts[target] += edge(parts[source])``; ``name`` is for messages."""

    source: int
    target: int
    edge: nn.Module
    name: str


class Wiring(NamedTuple):
    """What a layer of couplings computes, as data.

    A *part* is a stream, or a half of one where a stream's channels are split.

    Attributes:
        couplings: in forward order. No coupling's source is changed before its inverse has read it.
        inputs, outputs: for each stream, its part or its two halves. A part of the outputs alone is *created* by its
            couplings, and ends with the backward pass.
    """

    couplings: list[Coupling]
    inputs: Sequence[tuple[int, ...]]
    outputs: Sequence[tuple[int, ...]]

    @property
    def num_parts(self) -> int:
        return 1 + max(part for stream in (*self.inputs, *self.outputs) for part in stream)


class Plan:
    """The forms of a layer's edges.

    Args:
        roots: modules below which all is that the wiring was read from; by default, the edges themselves.

    Attributes:
        wiring: see :class:`Wiring`.
        forms: for each coupling its edge's form. All of a layer are lean or none is, so that every mode runs the same ones.
        lean: whether they are.
        created: the parts that have no input of their own.
        invertible: whether the inputs can be rebuilt from the outputs.
    """

    def __init__(self, wiring: Wiring, roots: Sequence[nn.Module] = ()) -> None:
        self.wiring = wiring
        edges = [coupling.edge for coupling in wiring.couplings]
        self.structure = Structure(roots or edges)
        found = [lean_form(edge) for edge in edges]
        self.lean = all(form is not None for form in found)
        self.forms: list[Form] = [form for form in found if form] if self.lean else [PlainForm(edge) for edge in edges]
        inputs = {part for stream in wiring.inputs for part in stream}
        outputs = {part for stream in wiring.outputs for part in stream}
        self.created = frozenset(outputs - inputs)
        self.invertible = inputs <= outputs

    def parameters(self) -> list[list[Tensor]]:
        """For each coupling, its edge's parameters as they are now."""
        return [form.parameters() for form in self.forms]


T = TypeVar("T")


class Planned(Generic[T]):
    """A plan that is made on first use and again when what it was made of has changed. Copies start without one."""

    def __init__(self) -> None:
        self._plan: T | None = None
        self._structure: Structure | None = None

    def get(self, make: Callable[[], T], structure: Callable[[T], Structure]) -> T:
        """The plan, made anew if ``structure`` of the last one is not what it was."""
        with modules_in_use:
            if self._plan is None or self._structure is None or not self._structure.is_unchanged():
                self._plan = make()
                self._structure = structure(self._plan)
            return self._plan

    def __deepcopy__(self, memo: dict[int, Any]) -> Planned[T]:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_training, _momentum, _padding_mode = (attrgetter(name) for name in ("training", "momentum", "padding_mode"))


class Structure:
    """All that a plan depends on, in a form that is compared in a fraction of a millisecond.

    The dictionaries of all modules are gathered once; a later look goes over them with C-level iteration alone.
    """

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self.modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        states = [module.__dict__ for module in self.modules]
        self._states = states
        self._children = [state["_modules"] for state in states]
        self._params = [state["_parameters"] for state in states]
        self._hooks = [state[name] for state in states for name in _HOOKS]
        self._norms = [module for module in self.modules if hasattr(module, "momentum")]
        self._convs = [module for module in self.modules if hasattr(module, "padding_mode")]
        self._seen = self._look()

    def is_unchanged(self) -> bool:
        """Whether everything is as it was when this was made."""
        return self._seen == self._look()

    def _look(self) -> tuple[Any, ...]:
        params = list(chain.from_iterable(map(dict.values, self._params)))
        return (
            list(map(_training, self.modules)),
            list(map(id, params)),
            [param is not None and param.requires_grad for param in params],
            list(map(id, chain.from_iterable(map(dict.values, self._children)))),
            list(map(len, self._hooks)),
            list(map(len, self._states)),  # a replaced forward adds an entry
            list(map(_compiled, self.modules)),
            list(map(_momentum, self._norms)),
            list(map(_padding_mode, self._convs)),
        )


def _compiled(module: nn.Module) -> bool:
    return module.__dict__.get("_compiled_call_impl") is not None


def hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether any of ``modules``, or every module, has a forward or backward hook that may look at tensors."""
    everywhere = nn.modules.module
    anywhere = (
        everywhere._global_forward_hooks,
        everywhere._global_forward_pre_hooks,
        everywhere._global_backward_hooks,
        everywhere._global_backward_pre_hooks,
    )
    hooks = chain(
        chain.from_iterable(map(dict.values, anywhere)),
        (hook for module in modules for name in _HOOKS for hook in module.__dict__[name].values()),
    )
    return any(not getattr(hook, "looks_at_no_tensor", False) for hook in hooks)


def looks_at_no_tensor(hook: T) -> T:
    """Mark a module hook that does not look at what goes in or comes out, such as a profiler's that names modules."""
    hook.looks_at_no_tensor = True  # type: ignore[attr-defined]
    return hook
