"""Additive layers: lists of couplings ``target += edge(source)``.

Running the list backwards with minus signs is the inverse, and the one replay of an edge that this takes serves its gradient
too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from revbifpn.reversible.exact import round_to_grid
from revbifpn.reversible.forms import Setting, is_unusual, own_dtype, without_autocast
from revbifpn.reversible.layers import Held, Reversed, ReversibleLayer
from revbifpn.reversible.parts import Parts, join_parts, present, split
from revbifpn.reversible.plain import modules_in_use
from revbifpn.reversible.plan import Coupling, Plan, Planned, Wiring
from revbifpn.reversible.streams import Streams

#: The edges that are stored, or whether all are.
Choice = Set[nn.Module] | bool


class AdditiveLayer(ReversibleLayer):
    """A reversible layer made of couplings; a subclass says in :meth:`wiring` which.

    Attributes:
        in_place: without gradients, add to streams in their memory once it is the layer's own. Hooks then see tensors that are
            overwritten later. An edge may have a method ``add_to(source, target)`` for it.
    """

    in_place = False

    def __init__(self) -> None:
        super().__init__()
        self._planned: Planned[Plan] = Planned()

    def wiring(self) -> Wiring:
        """The couplings, and how streams are made of parts."""
        raise NotImplementedError

    def couplings(self) -> list[Coupling]:
        """The couplings in forward order."""
        return self.wiring().couplings

    def plan(self) -> Plan:
        """The plan for the layer as it is now."""
        return self._planned.get(lambda: Plan(self.wiring(), [self]), lambda plan: plan.structure)

    def forget_edges(self) -> None:
        """Make the next plan anew; to be called where edges were replaced."""
        self._planned = Planned()

    def is_lean(self) -> bool:
        return self.plan().lean

    def transform(self, streams: Streams, setting: Setting, owned: bool = False) -> Streams:
        """See :meth:`.ReversibleLayer.transform`; ``owned`` streams may be overwritten if the layer works in place."""

        def value_of(index: int, coupling: Coupling, source: Tensor) -> Tensor:
            if source.requires_grad and not torch.jit.is_tracing():  # a trace is checked without gradients
                # A node of the edge's own: autograd then sums gradients in the order of `AdditiveRun.reverse`. Not by
                # `view_as`: of a single sample that gives strides that do not count as channels_last any more.
                source = torch.ops.aten.alias.default(source)
            value: Tensor = coupling.edge(own_dtype(coupling.edge, source, setting))
            return value

        in_place = self.in_place and not torch.is_grad_enabled()
        return transform(type(self).__name__, self.wiring(), streams, value_of, setting.bits, in_place, owned)

    def inverse(self, *streams: Tensor) -> Streams:
        name, wiring = type(self).__name__, self.wiring()
        parts = split(streams, wiring.outputs, wiring.num_parts, f"{name}.inverse")
        kept = {part for stream in wiring.inputs for part in stream}
        for coupling in reversed(wiring.couplings):
            if coupling.target in kept:
                source, target = present(parts[coupling.source]), present(parts[coupling.target])
                with _named(name, coupling, source):
                    value = coupling.edge(source)
                _check_shape(name, coupling, value, target)
                parts[coupling.target] = target - _settle(value, target.dtype, self.exact_bits)
        return tuple(present(stream) for stream in join_parts(parts, wiring.inputs))

    def begin(self, setting: Setting, store: Choice = False) -> AdditiveRun:
        """Begin a pass in which some edges are stored."""
        with modules_in_use:
            return AdditiveRun(type(self).__name__, self.plan(), setting, store)


def transform(
    name: str,
    wiring: Wiring,
    streams: Streams,
    value_of: Callable[[int, Coupling, Tensor], Tensor],
    bits: int | None,
    in_place: bool = False,
    owned: bool = False,
    invertible: bool = True,
) -> Streams:
    """Map the streams through the couplings with ordinary, differentiable operations.

    Args:
        name: of the layer, for messages.
        value_of: (index, coupling, source) -> the value of the coupling's edge.
        bits: of the exact mode's grid, or None.
        in_place: overwrite what was made here, and ``streams`` too if they are ``owned``.
        invertible: False for what is read out, which is no stream: values stay in the dtype that the edges return.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    dense = not traced and not any(stream.requires_grad for stream in streams)
    parts = split(streams, wiring.inputs, wiring.num_parts, name, dense)
    in_place &= dense
    mine = {part for stream in wiring.inputs if in_place and (owned or len(stream) > 1) for part in stream}
    dtype = streams[0].dtype
    for index, coupling in enumerate(wiring.couplings):
        source, target = present(parts[coupling.source]), parts[coupling.target]
        with _named(name, coupling, source):
            if coupling.target in mine and bits is None and hasattr(coupling.edge, "add_to") and not is_unusual(coupling.edge):
                cast(Any, coupling.edge).add_to(source, target)
                continue
            value = value_of(index, coupling, source)
        _check_shape(name, coupling, value, target)
        if invertible:
            value = _settle(value, dtype, bits)
        if target is None:
            parts[coupling.target] = value
            mine.discard(coupling.source)  # an edge may return its source
        elif coupling.target in mine:
            target.add_(value)
        else:
            parts[coupling.target] = target + value
            if in_place:
                mine.add(coupling.target)
    return tuple(present(stream) for stream in join_parts(parts, wiring.outputs))


class AdditiveRun:
    """One pass of a layer of couplings."""

    def __init__(self, name: str, plan: Plan, setting: Setting, store: Choice) -> None:
        self.name, self.plan, self.setting = name, plan, setting
        self.bits = setting.bits if plan.invertible else None  # what is read out is no stream
        if isinstance(store, bool):
            self.runs = [form.begin(setting, store) for form in plan.forms]
        else:
            stored = [plan.lean and coupling.edge in store for coupling in plan.wiring.couplings]
            self.runs = [form.begin(setting, keep) for form, keep in zip(plan.forms, stored, strict=True)]
        by_edge = plan.parameters()
        self.needs = [any(param.requires_grad for param in params) for params in by_edge]
        # The last edge's parameters come first: where edges share one, autograd then adds in the plain network's order.
        self.params = [param for params in reversed(by_edge) for param in params]
        self.counts = [len(params) for params in by_edge]
        self.kept_counts: list[int] = []
        self.shapes: list[tuple[torch.Size, torch.dtype, torch.device]] = []
        self.owned: list[bool] = []

    def record(self, streams: Streams, owned: Sequence[bool]) -> Streams:
        """See :class:`.LayerRun`."""
        with without_autocast(streams[0]) if self.plan.lean else nullcontext():
            return self._record(streams, owned)

    def _record(self, streams: Streams, owned: Sequence[bool]) -> Streams:
        plan, wiring = self.plan, self.plan.wiring
        parts = split(streams, wiring.inputs, wiring.num_parts, self.name, dense=True)
        mine = {part: own or len(stream) > 1 for stream, own in zip(wiring.inputs, owned, strict=True) for part in stream}
        dtype = streams[0].dtype
        del streams
        for run, coupling in zip(self.runs, wiring.couplings, strict=True):
            source, target = present(parts[coupling.source]), parts[coupling.target]
            with _named(self.name, coupling, source):
                value = run.record(source)
            self.shapes.append((value.shape, value.dtype, value.device))
            if target is None:
                value = _settle(value, dtype, self.bits) if plan.invertible else value
                # What any module returns may be its input's memory, or a parameter's.
                parts[coupling.target] = value if plan.lean else value.clone()
            else:
                _check_shape(self.name, coupling, value, target)
                value = _settled(value, dtype, self.bits)
                parts[coupling.target] = target.add_(value) if mine[coupling.target] else target + value
            mine[coupling.target] = True
            del value, source, target
        self.setting.move_counters()
        self.owned = [len(stream) > 1 or mine[stream[0]] for stream in wiring.outputs]
        outputs = tuple(present(stream) for stream in join_parts(parts, wiring.outputs))
        # Aliases: autograd takes an output that is also an input for untouched.
        return tuple(output.detach() for output in outputs)

    def kept(self) -> list[Tensor]:
        """See :class:`.LayerRun`."""
        kept = [run.kept() for run in self.runs]
        self.kept_counts = [len(tensors) for tensors in kept]
        return [tensor for tensors in kept for tensor in tensors]

    def reverse(
        self, outputs: Held, grads: Held, params: Sequence[Tensor], kept: Sequence[Tensor], needs: Sequence[bool]
    ) -> Reversed:
        """See :class:`.LayerRun`."""
        like = next(tensor for tensor in outputs.tensors if tensor is not None)
        with without_autocast(like) if self.plan.lean else nullcontext():
            del like
            return self._reverse(outputs, grads, params, kept, needs)

    def _reverse(
        self, outputs: Held, grads: Held, params: Sequence[Tensor], kept: Sequence[Tensor], needs: Sequence[bool]
    ) -> Reversed:
        plan, wiring = self.plan, self.plan.wiring
        value_wiring = wiring.outputs if plan.invertible else wiring.inputs
        values = Parts(outputs, value_wiring, wiring.num_parts)
        part_grads = Parts(grads, wiring.outputs, wiring.num_parts)
        needed = self._source_needs(needs)
        edge_params, edge_kept = _cut(params, reversed(self.counts)), _cut(kept, self.kept_counts)
        edge_params.reverse()
        found: list[list[Tensor | None]] = [[None] * count for count in self.counts]
        for index in reversed(range(len(self.runs))):
            coupling = wiring.couplings[index]
            s, t = coupling.source, coupling.target
            grad = part_grads.tensors[t]
            differentiate = grad is not None and (needed[index] or self.needs[index])
            if not differentiate and t in plan.created:
                continue
            source = present(values.tensors[s])
            with _named(self.name, coupling, source):
                replay = self.runs[index].replay(
                    source, edge_params[index], edge_kept[index], grad if differentiate else None, needed[index]
                )
                replay.fresh = part_grads.tensors[s] is None
                target = None if t in plan.created else values.own(t)
                for rows, value in replay.values():
                    self._check_replayed(index, coupling, rows, value)
                    if target is not None:
                        target[rows].sub_(_settled(value, target.dtype, self.bits))
                    del value
                if differentiate:
                    part_grads.add(s, replay, source.dtype)
                    found[index] = replay.param_grads()
            del replay, source, target, grad
        inputs = values.join(wiring.inputs)
        input_grads = part_grads.join(wiring.inputs)
        kept_grads = [grad if need else None for grad, need in zip(input_grads.tensors, needs, strict=True)]
        return Reversed(
            inputs,
            Held(kept_grads, input_grads.owned),
            [grad for grads_of_edge in reversed(found) for grad in grads_of_edge],
        )

    def differentiable(self, streams: Streams, params: Sequence[Tensor]) -> Streams:
        """See :class:`.LayerRun`."""
        edge_params = _cut(params, reversed(self.counts))
        edge_params.reverse()

        def value_of(index: int, coupling: Coupling, source: Tensor) -> Tensor:
            return self.runs[index].differentiable(source, edge_params[index])

        return transform(self.name, self.plan.wiring, streams, value_of, self.bits, invertible=self.plan.invertible)

    def _source_needs(self, needs: Sequence[bool]) -> list[bool]:
        """For each coupling, whether its source takes a gradient: what autograd finds out by itself in a plain network."""
        part_needs = [False] * self.plan.wiring.num_parts
        for stream, need in zip(self.plan.wiring.inputs, needs, strict=True):
            for part in stream:
                part_needs[part] = need
        source_needs = []
        for coupling, trains in zip(self.plan.wiring.couplings, self.needs, strict=True):
            source_needs.append(part_needs[coupling.source])
            part_needs[coupling.target] |= part_needs[coupling.source] or trains
        return source_needs

    def _check_replayed(self, index: int, coupling: Coupling, rows: slice, value: Tensor) -> None:
        shape, dtype, device = self.shapes[index]
        expected = (len(range(*rows.indices(shape[0]))), *shape[1:]) if shape else shape
        if value.shape != expected or value.dtype != dtype or value.device != device:
            raise RuntimeError(
                f"edge {coupling.name} of {self.name} returned {tuple(value.shape)}, {value.dtype} on {value.device} in the "
                f"backward pass and {tuple(expected)}, {dtype} on {device} in the forward pass: an edge has to be a function "
                "of its input, parameters and buffers. Take out what differs between two calls, or set reversible=False"
            )


def _settle(value: Tensor, dtype: torch.dtype, bits: int | None) -> Tensor:
    """An edge's value as it enters a stream: in the stream's dtype and, in exact mode, on the grid."""
    # Under autocast an edge may return half precision; a stream kept in it would be rebuilt with errors of 1e-2.
    value = value.to(dtype)
    return value if bits is None else round_to_grid(value, bits)


def _settled(value: Tensor, dtype: torch.dtype, bits: int | None) -> Tensor:
    """As :func:`_settle`, for an in-place sum, which raises the dtype by itself."""
    return value if bits is None else round_to_grid(value.to(dtype), bits)


def _cut(tensors: Sequence[Tensor], counts: Sequence[int] | Iterator[int]) -> list[list[Tensor]]:
    rest = iter(tensors)
    return [[next(rest) for _ in range(count)] for count in counts]


@contextmanager
def _named(name: str, coupling: Coupling, source: Tensor) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"raised in edge {coupling.name} of {name}, which got a tensor of shape {tuple(source.shape)}")
        raise


def _check_shape(name: str, coupling: Coupling, value: Tensor, target: Tensor | None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: edge {coupling.name} returned {type(value).__name__}, but an edge has to return one tensor")
    if target is None:
        return
    if value.shape != target.shape:
        raise ValueError(
            f"{name}: edge {coupling.name} returned shape {tuple(value.shape)}, its target stream has {tuple(target.shape)}"
        )
    if value.device != target.device:
        raise ValueError(
            f"{name}: edge {coupling.name} returned a tensor on {value.device}, its target stream is on {target.device}: "
            "move the edge's parameters or its output there"
        )
