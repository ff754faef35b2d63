"""What every measurement here prints beside its numbers, and how it takes times."""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch

import revbifpn


def environment() -> dict[str, Any]:
    """Processor, threads, versions and date."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "revbifpn": revbifpn.__version__,
        "python": platform.python_version(),
    }


def describe(env: Mapping[str, Any]) -> str:
    """The environment in one line."""
    device = env["gpu"] or f"{env['cpu']}, {env['threads']} threads"
    return f"{device}; torch {env['torch']}, timm {env['timm']}, Python {env['python']}; {env['date']}"


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
