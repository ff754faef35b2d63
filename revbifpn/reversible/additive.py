"""Additive layers: lists of couplings ``target += edge(source)``.

Running the list backwards with minus signs is the inverse, and the one run of an edge that this takes serves its gradient too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from revbifpn.reversible.exact import round_to_grid
from revbifpn.reversible.layers import MaybeGrads, PullBack, ReversibleLayer, Streams, Values
from revbifpn.reversible.replay import EdgeRun


class Coupling(NamedTuple):
    """``parts[target] += edge(parts[source])``; ``name`` is for messages."""

    source: int
    target: int
    edge: nn.Module
    name: str


class AdditiveLayer(ReversibleLayer):
    """A reversible layer made of couplings over *parts*: streams, or what a stream is split into."""

    def couplings(self) -> list[Coupling]:
        """The couplings in forward order. No coupling's source is changed before its inverse has read it."""
        raise NotImplementedError

    def split(self, streams: Streams) -> list[Tensor | None]:
        """Input streams -> parts; None for a part that the couplings create."""
        raise NotImplementedError

    def split_outputs(self, streams: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Output streams, or their gradients, -> parts."""
        raise NotImplementedError

    def join(self, parts: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Parts -> streams; None where a stream's parts are all None."""
        raise NotImplementedError

    def created(self) -> frozenset[int]:
        """The parts that have no input of their own."""
        return frozenset()

    def edge_runs(self) -> list[EdgeRun]:
        return [EdgeRun(coupling.edge) for coupling in self.couplings()]

    def transform(self, streams: Streams, runs: list[EdgeRun] | None) -> Streams:
        parts, dtype = self.split(streams), streams[0].dtype
        for index, coupling in enumerate(self.couplings()):
            source, target = _present(parts[coupling.source]), parts[coupling.target]
            # The view gives the edge a node of its own, so that stored mode sums gradients in the order of `pull_back`.
            run = coupling.edge if runs is None else runs[index].first
            value = self._edge_value(coupling, run, source.view_as(source), target, dtype)
            parts[coupling.target] = value if target is None else target + value
        return tuple(_present(stream) for stream in self.join(parts))

    def inverse(self, *streams: Tensor) -> Streams:
        parts, dtype, created = self.split_outputs(streams), streams[0].dtype, self.created()
        for coupling in reversed(self.couplings()):
            if coupling.target not in created:
                source, target = _present(parts[coupling.source]), _present(parts[coupling.target])
                parts[coupling.target] = target - self._edge_value(coupling, coupling.edge, source, target, dtype)
        return tuple(_present(s) for s in self.join([p for i, p in enumerate(parts) if i not in created]))

    def pull_back(
        self, runs: list[EdgeRun], params: list[list[Tensor]], outputs: Values, grads: MaybeGrads, needs: Sequence[bool]
    ) -> PullBack:
        couplings, created, dtype = self.couplings(), self.created(), outputs.streams[0].dtype
        stream_of_part = self.streams_of_parts(len(outputs.streams))
        values, part_grads = self.split_outputs(outputs.streams), self.split_outputs(grads)
        needed = self._source_needs(couplings, runs, stream_of_part, needs)
        param_grads: list[tuple[Tensor | None, ...]] = [()] * len(couplings)
        # Parts whose value or gradient is ours to change in place.
        own_values = {part for part, stream in enumerate(stream_of_part) if outputs.owned[stream]}
        own_grads: set[int] = set()
        for index in reversed(range(len(couplings))):
            coupling, run, leaves = couplings[index], runs[index], params[index]
            s, t = coupling.source, coupling.target
            source, target, grad = _present(values[s]), _present(values[t]), part_grads[t]
            source = source.detach().requires_grad_(needed[index])
            wanted = [x for x in (source, *leaves) if x.requires_grad]
            differentiate = grad is not None and bool(wanted)
            param_grads[index] = (None,) * len(leaves)
            if not differentiate and t in created:
                continue
            with torch.set_grad_enabled(differentiate):
                value = self._edge_value(coupling, partial(run.again, leaves), source, target, dtype)
            if differentiate and value.requires_grad:
                found = iter(torch.autograd.grad(value, wanted, grad, allow_unused=True))
                source_grad = next(found) if source.requires_grad else None
                param_grads[index] = tuple(next(found) if leaf.requires_grad else None for leaf in leaves)
                _accumulate(part_grads, s, source_grad, own_grads)
            if t not in created:
                if t in own_values:
                    target.sub_(value.detach())
                else:
                    values[t] = target - value.detach()
                    own_values.add(t)
            del value, source, target, leaves, wanted
        keep = [i for i in range(len(values)) if i not in created]
        inputs = tuple(_present(x) for x in self.join([values[i] for i in keep]))
        input_grads = self.join([part_grads[i] for i in keep])
        # A stream with a part that was not replaced still is, or is a view of, what somebody else holds.
        borrowed = {stream_of_part[p] for p in range(len(values)) if p not in own_values and values[p] is not None}
        owned = tuple(stream not in borrowed for stream in range(len(inputs)))
        return PullBack(Values(inputs, owned), input_grads, param_grads)

    def _source_needs(
        self, couplings: Sequence[Coupling], runs: Sequence[EdgeRun], stream_of_part: Sequence[int], needs: Sequence[bool]
    ) -> list[bool]:
        """For each coupling, whether its source takes a gradient: what autograd finds out by itself in stored mode."""
        created = self.created()
        part_needs = [False if p in created else bool(needs[stream]) for p, stream in enumerate(stream_of_part)]
        source_needs = []
        for coupling, run in zip(couplings, runs, strict=True):
            source_needs.append(part_needs[coupling.source])
            part_needs[coupling.target] |= part_needs[coupling.source] or any(run.needs)
        return source_needs

    def streams_of_parts(self, num_outputs: int) -> list[int]:
        """For each part, the index of the stream that it belongs to."""
        return list(range(num_outputs))

    def _edge_value(
        self,
        coupling: Coupling,
        run: Callable[[Tensor], Tensor],
        source: Tensor,
        target: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Run an edge, check what comes out, bring it to the streams' dtype and, in exact mode, on the grid."""
        try:
            value = run(source)
        except Exception as error:
            error.add_note(
                f"raised in {type(self).__name__}'s edge {coupling.name}, which got a tensor of shape {tuple(source.shape)}"
            )
            raise
        if target is not None and value.shape != target.shape:
            raise ValueError(
                f"{type(self).__name__}: edge {coupling.name} returned shape {tuple(value.shape)}, "
                f"its target stream has {tuple(target.shape)}"
            )
        # Under autocast an edge may return half precision; a stream kept in it would be rebuilt with errors of 1e-2.
        value = value.to(dtype)
        return value if self.exact_bits is None else round_to_grid(value, self.exact_bits)


def _accumulate(grads: list[Tensor | None], index: int, grad: Tensor | None, owned: set[int]) -> None:
    """``grads[index] += grad``, in place once the sum is ours."""
    old = grads[index]
    if grad is None:
        return
    if old is None:
        grads[index] = grad
    elif index in owned:
        old += grad
    else:
        grads[index] = old + grad
        owned.add(index)


def _present(part: Tensor | None) -> Tensor:
    assert part is not None, "a coupling reads a stream before anything created it"
    return part
