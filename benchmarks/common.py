"""What every measurement here prints beside its numbers, and how it takes times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from revbifpn.memory.environment import describe, environment

__all__ = ["describe", "environment", "median_and_spread", "time_side_by_side"]


def time_side_by_side(runs: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each run, taken in turns (A B C A B C ...), so that a machine that drifts drifts for all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(warmup + repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def median_and_spread(values: list[float]) -> str:
    """``median (minimum - maximum)``."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} - {max(values):.3f})"
