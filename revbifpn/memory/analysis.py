"""From a tracked step to a report: the curve of live bytes, its peak, and what is alive there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from torch import nn

from revbifpn.memory.kinds import is_rebuilt_stream, kind_of, stage_of, stream_of
from revbifpn.memory.measure import Measurement
from revbifpn.memory.report import CATEGORIES, MemoryReport, TensorRecord, TimelinePoint, thin_timeline
from revbifpn.memory.tracker import Allocation, StorageTracker

#: So many tensors are named one by one; the rest is joined.
_NAMED_TENSORS = 400


def analyse(tracker: StorageTracker, model: nn.Module, measurement: Measurement | None, **about: Any) -> MemoryReport:
    """Make the report of a tracked step.

    Args:
        tracker: after the step.
        measurement: the allocator's figures; None takes the tracker's own curve.
        **about: the report's descriptive fields.
    """
    curve = _curve(tracker, measurement)
    peak_index = max(range(len(curve)), key=curve.__getitem__)
    peak = curve[peak_index]
    if measurement is not None and measurement.peak_index is None:
        peak = sum(a.nbytes for a in tracker.allocations if a.phase == "before") + measurement.peak
    alive = [a for a in tracker.allocations if _is_alive(a, peak_index)]
    if sum(a.nbytes for a in alive) > peak:  # the allocator's peak came before the operator's output was there
        alive = [a for a in alive if a.birth != peak_index]
    operation = tracker.operations[peak_index]
    image = about["image"]
    records = sorted((_record(a, model, image) for a in alive), key=lambda r: -r.nbytes)
    inside = peak - sum(r.nbytes for r in records)
    if inside > 0:
        workspace = TensorRecord(
            inside,
            (),
            "",
            "temporaries",
            f"workspace of {operation.operator}",
            operation.operator,
            operation.module,
            stage_of(operation.module, model),
            "",
            operation.phase,
        )
        records = sorted([*records, workspace], key=lambda r: -r.nbytes)
    steps = enumerate(zip(curve, tracker.operations, strict=True))
    points = [TimelinePoint(i, nbytes, o.phase, o.operator, o.module) for i, (nbytes, o) in steps]
    changing = [r for r in records if r.category in ("activations", "temporaries")]
    return MemoryReport(
        peak=peak,
        categories={name: sum(r.nbytes for r in records if r.category == name) for name in CATEGORIES},
        stages=_sums((r.stage, r.nbytes) for r in changing),
        streams=_sums((r.stream or "not image-like", r.nbytes) for r in changing),
        kinds=_sums((r.kind, r.nbytes) for r in changing),
        tensors=_joined(records),
        timeline=thin_timeline(points, peak_index),
        peak_index=peak_index,
        num_operators=len(tracker.operations),
        **about,
    )


def _is_alive(allocation: Allocation, index: int) -> bool:
    return allocation.birth <= index and (allocation.death is None or allocation.death > index)


def _curve(tracker: StorageTracker, measurement: Measurement | None) -> list[int]:
    """Return the highest sum of live bytes while each operator ran."""
    if measurement is not None and measurement.by_operator:
        before = sum(a.nbytes for a in tracker.allocations if a.phase == "before")
        return [before + nbytes for nbytes in measurement.by_operator]
    changes = [0] * (len(tracker.operations) + 1)
    for allocation in tracker.allocations:
        changes[max(allocation.birth, 0)] += allocation.nbytes
        if allocation.death is not None:
            changes[allocation.death] -= allocation.nbytes
    return [live + operation.workspace for live, operation in zip(accumulate(changes), tracker.operations, strict=False)]


def _record(allocation: Allocation, model: nn.Module, image: tuple[int, int] | None) -> TensorRecord:
    category = allocation.category or _category(allocation)
    kind = category if allocation.category else kind_of(allocation.operator, allocation.phase, allocation.differentiable)
    return TensorRecord(
        allocation.nbytes,
        allocation.shape,
        allocation.dtype,
        category,
        kind,
        allocation.operator,
        allocation.module,
        stage_of(allocation.module, model),
        stream_of(allocation.shape, image),
        allocation.phase,
    )


def _category(allocation: Allocation) -> str:
    forward = allocation.phase == "forward" or (allocation.phase == "backward" and allocation.differentiable)
    forward = forward or is_rebuilt_stream(allocation.operator, allocation.phase)
    return "activations" if forward else "temporaries"


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for name, nbytes in pairs:
        sums[name] += nbytes
    return dict(sums.most_common())


def _joined(records: list[TensorRecord]) -> list[TensorRecord]:
    """Return the largest ones, then one record for the rest of each category."""
    named, rest = records[:_NAMED_TENSORS], records[_NAMED_TENSORS:]
    for category in CATEGORIES:
        small = [r.nbytes for r in rest if r.category == category]
        if small:
            named.append(TensorRecord(sum(small), (), "", category, f"{len(small)} smaller tensors", "", "", "", "", ""))
    return named
