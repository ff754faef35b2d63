"""Activation budget: between rebuilding everything and keeping everything, edge by edge.

A stored edge keeps the outputs of its convolutions and runs none of them again in the backward pass. Edges differ by orders of
magnitude in the time that this saves for each byte, so a small part of the bytes saves a large part of the time: the edges
with the most time for their bytes come first. Gradients are the same at every budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from revbifpn.reversible.additive import AdditiveLayer, transform
from revbifpn.reversible.choice import Choice
from revbifpn.reversible.forms import EdgeCost
from revbifpn.reversible.peak import Peaks
from revbifpn.reversible.plan import Coupling, Plan, Wiring
from revbifpn.reversible.readout import ReadOut
from revbifpn.reversible.streams import Streams
from revbifpn.reversible.units import format_bytes, parse_bytes


class BudgetError(ValueError):
    """An activation budget that cannot be kept."""


def read_budget(value: float | str) -> float | int:
    """What a user asked for: a fraction of stored mode's activations as a float in 0..1, or bytes as an int.

    Args:
        value: 0 to 1 for a fraction, a larger number for bytes, or a text with either (``"0.25"``, ``"2 GiB"``).

    Raises:
        BudgetError: if it is none of these.
    """
    number: float
    try:
        number = _number(value)
        if isinstance(value, bool) or not 0 <= number < float("inf"):
            raise ValueError
    except (TypeError, ValueError):
        raise BudgetError(
            "an activation budget is a fraction of stored mode's activations (0 to 1), a number of bytes, or a text such as "
            f"'2 GiB', got {value!r}"
        ) from None
    return float(number) if number <= 1 else int(number)


def _number(value: float | str) -> float:
    if not isinstance(value, str):
        return value + 0  # a TypeError for what is no number
    try:
        return float(value)
    except ValueError:
        return parse_bytes(value)


@dataclass(frozen=True)
class Candidate:
    """An edge that can be stored.

    Attributes:
        link: which link of a pass its layer is.
        name: layer and edge, for people.
        edge: the module.
        cost: for the step that was planned.
    """

    link: int
    name: str
    edge: nn.Module
    cost: EdgeCost


@dataclass(frozen=True, eq=False)
class Budget:
    """A chosen budget, and what it buys. ``str(budget)`` is a table.

    Attributes:
        asked: fraction or bytes, see :func:`read_budget`.
        pixels: batch x height x width of the step for which bytes were predicted; all of them grow in proportion.
        peaks: activation memory of that step with nothing stored.
        whole_peaks: the same where edges run again for the whole batch at once.
        stored: its highest activation memory in stored mode, in bytes.
        candidates: the edges that can be stored, most time for their bytes first.
    """

    asked: float | int
    pixels: int
    peaks: Peaks
    whole_peaks: Peaks
    stored: int
    candidates: Sequence[Candidate]
    _chosen: dict[int, Choice] = field(default_factory=dict, repr=False)

    @property
    def limit(self) -> int:
        """Bytes of activations that the planned step may take at its peak."""
        return int(self.asked * self.stored) if isinstance(self.asked, float) else self.asked

    def edges(self, pixels: int) -> frozenset[nn.Module]:
        """The edges to store in a step of so many pixels; none if that step takes more than the budget anyway."""
        return self.choice(pixels).edges

    def choice(self, pixels: int) -> Choice:
        """What to spend in a step of so many pixels."""
        if pixels not in self._chosen:
            # Everything grows with the pixels, and so does a fraction; a number of bytes stays.
            scale = 1.0 if isinstance(self.asked, float) else pixels / self.pixels
            self._chosen[pixels] = self._choose(scale)
        return self._chosen[pixels]

    def _choose(self, scale: float) -> Choice:
        # Chunks cost a part of the replay's time, stored edges save it: both get their share.
        whole = self.whole_peaks.highest * scale <= self.limit / 2
        peaks = self.whole_peaks if whole else self.peaks
        # Operators on a whole batch take memory for themselves, which no prediction here sees: up to a tensor of an edge.
        reserve = max((candidate.cost.kept for candidate in self.candidates), default=0) * scale if whole else 0.0
        # What an edge of link i keeps is there until the backward pass of link i: beside the work of every later link.
        left = [self.limit - reserve - peak * scale for peak in (*peaks.links, peaks.elsewhere)]
        chosen = []
        for candidate in self.candidates:
            kept = candidate.cost.kept * scale
            if all(kept <= room for room in left[candidate.link :]):
                left[candidate.link :] = [room - kept for room in left[candidate.link :]]
                chosen.append(candidate.edge)
        return Choice(frozenset(chosen), whole)

    def __str__(self) -> str:
        chosen = self.edges(self.pixels)
        everything = sum(candidate.cost.saved for candidate in self.candidates) or 1.0
        rows = [("edge", "keeps", "saves", "")]
        for candidate in self.candidates:
            cost, mark = candidate.cost, "stored" if candidate.edge in chosen else ""
            rows.append((candidate.name, format_bytes(cost.kept), f"{100 * cost.saved / everything:.1f}%", mark))
        width = max(len(name) for name, *_ in rows)
        costs = [candidate.cost for candidate in self.candidates if candidate.edge in chosen]
        kept, saved = sum(cost.kept for cost in costs), sum(cost.saved for cost in costs)
        return "\n".join(
            [
                f"activation budget {format_bytes(self.limit)}; with nothing stored {format_bytes(self.peaks.highest)}, with "
                f"everything {format_bytes(self.stored)}",
                f"{len(chosen)} of {len(self.candidates)} edges stored: they keep {format_bytes(kept)} and save "
                f"{100 * saved / everything:.0f}% of the second run of the convolutions",
                *(f"  {name:<{width}}  {keeps:>8}  {saves:>6}  {mark}".rstrip() for name, keeps, saves, mark in rows),
            ]
        )


class _Planned(Protocol):
    def plan(self) -> Plan: ...

    def wiring(self) -> Wiring: ...


def find_candidates(layers: Sequence[nn.Module], streams: Streams, readout: ReadOut | None, num_links: int) -> list[Candidate]:
    """Run layers on streams, and find what it costs and saves to store each of their edges; best first.

    Args:
        num_links: how many of the layers, and the readout, train: the last ones.
    """
    first = len(layers) + (readout is not None) - num_links
    found: list[Candidate] = []

    def run(index: int, name: str, part: _Planned, streams: Streams) -> Streams:
        plan = part.plan()

        def value_of(which: int, coupling: Coupling, source: Tensor) -> Tensor:
            cost = plan.forms[which].cost(source.shape, source.element_size())
            if plan.lean and cost is not None and index >= first:
                found.append(Candidate(index - first, f"{name}{coupling.name}", coupling.edge, cost))
            value: Tensor = coupling.edge(source)
            return value

        return transform(name, part.wiring(), streams, value_of, None)

    for index, layer in enumerate(layers):
        streams = run(index, f"layer {index}: ", layer, streams) if isinstance(layer, AdditiveLayer) else layer(*streams)
    if readout is not None:
        run(len(layers), "neck", readout, streams)
    return sorted(found, key=lambda candidate: candidate.cost.saved / candidate.cost.kept, reverse=True)
