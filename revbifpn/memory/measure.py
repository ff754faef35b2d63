"""What the allocator itself says of a step: its events on CPU, its statistics on CUDA."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "revbifpn.memory#"
#: Allocations of a step of the largest models, several times over.
_SNAPSHOT_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Measurement:
    """Bytes above what was allocated before the step.

    Attributes:
        peak: the highest sum.
        peak_index: the operator that was running then; None if the allocator does not tell.
        by_operator: for each operator the highest sum until the next began; empty if the allocator does not tell.
        reserved: all that a caching allocator held at its peak, free blocks included.
    """

    peak: int
    peak_index: int | None
    by_operator: list[int]
    reserved: int | None = None


def mark(execute: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any], count: Callable[[], int]) -> Any:
    """Wrap ``execute`` so that a profiler's record says which operator was running; ``count()`` is its number."""

    def marked(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with record_function(f"{_MARK}{count()}"):
            return execute(func, args, kwargs)

    return marked


def measure_cpu(step: Callable[[], None], num_operators: Callable[[], int]) -> Measurement:
    """Run ``step`` under PyTorch's profiler and add up the CPU allocator's events.

    Args:
        step: runs operators wrapped by :func:`mark`.
        num_operators: how many it ran, asked for afterwards.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports missing GPUs on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        step()
    changes, marks = _read(recording)
    starts, numbers = [start for start, _ in marks], [number for _, number in marks]
    by_operator = [0] * num_operators()
    live = peak = 0
    peak_index = 0
    current = -1
    for time, nbytes in changes:
        at = bisect_right(starts, time) - 1
        number = numbers[at] if at >= 0 else 0
        for skipped in range(current + 1, number + 1):
            by_operator[skipped] = live
        current = max(current, number)
        live += nbytes
        by_operator[number] = max(by_operator[number], live)
        if live > peak:
            peak, peak_index = live, number
    for skipped in range(current + 1, len(by_operator)):
        by_operator[skipped] = live
    return Measurement(peak, peak_index, by_operator)


def _read(recording: profile) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(time, bytes) of what was allocated and, negative, freed again; (time, number) of the operators. Both in order."""
    blocks: list[tuple[int, int, int]] = []
    marks: list[tuple[int, int]] = []
    events = list(recording.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    while events:
        event = events.pop()
        events.extend(event.children)
        kind, fields = event.typed
        if kind == _EventType.Allocation:
            blocks.append((event.start_time_ns, fields.alloc_size, fields.ptr))
        elif event.name.startswith(_MARK):
            marks.append((event.start_time_ns, int(event.name.removeprefix(_MARK))))
    changes: list[tuple[int, int]] = []
    live: set[int] = set()
    for time, nbytes, address in sorted(blocks):
        if nbytes >= 0:
            live.add(address)
        elif address in live:
            live.remove(address)
        else:  # it was there before: PyTorch tells of it if an earlier measurement saw it allocated
            continue
        changes.append((time, nbytes))
    return changes, sorted(marks)


def measure_cuda(step: Callable[[], None], snapshot: Path | None = None) -> Measurement:
    """Run ``step`` and read the CUDA caching allocator: its peak, in its own rounding and with cuDNN's workspaces.

    Args:
        snapshot: a file for the allocator's own record of the step, every allocation with its Python stack; it opens in
            PyTorch's memory viewer. None records nothing.
    """
    cuda = torch.cuda
    cuda.synchronize()
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    if snapshot is not None:
        cuda.memory._record_memory_history(max_entries=_SNAPSHOT_ENTRIES)
    try:
        step()
        cuda.synchronize()
        if snapshot is not None:
            cuda.memory._dump_snapshot(str(snapshot))
    finally:
        if snapshot is not None:
            cuda.memory._record_memory_history(enabled=None)
    return Measurement(cuda.max_memory_allocated() - before, None, [], cuda.max_memory_reserved())
