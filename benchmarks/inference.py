"""Images per second in eval mode: the yardstick, RevBiFPN as it is, and RevBiFPN after ``revbifpn.fuse``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import revbifpn
from benchmarks.common import median_and_spread, table, time_side_by_side
from benchmarks.networks import Network, NotThereError

#: Forward passes that are timed together: one of a single image is too short.
PASSES = 4


def fuse(model: nn.Module) -> nn.Module:
    """``revbifpn.fuse``.

    Raises:
        NotThereError: if this version has none.
    """
    if not hasattr(revbifpn, "fuse"):
        raise NotThereError("fused: this version has no revbifpn.fuse")
    fused: nn.Module = revbifpn.fuse(model)
    return fused


def run(model: nn.Module, images: Tensor) -> None:
    """Some forward passes."""
    with torch.inference_mode():
        for _ in range(PASSES):
            model(images)


def measure(name: str, image_size: int, batches: Sequence[int], repeats: int, progress: Callable[[str], None]) -> list[Any]:
    """For each batch the seconds of a forward pass: plain (in both memory formats), unfused and fused."""
    rows = []
    for batch in batches:
        runs: dict[str, Callable[[], object]] = {}
        for label, mode, channels_last in (
            ("plain", "plain", False),
            ("plain, channels_last", "plain", True),
            ("RevBiFPN", "reversible", False),
            ("RevBiFPN, fused", "reversible", False),
        ):
            network = Network(name, mode, batch, image_size, channels_last)
            model = network.build().eval()
            try:
                model = fuse(model) if label.endswith("fused") else model
            except NotThereError as missing:
                progress(f"left out: {missing}")
                continue
            runs[label] = partial(run, model, network.images())
        seconds = time_side_by_side(runs, repeats)
        rows.append(
            {
                "model": name,
                "image_size": image_size,
                "batch": batch,
                "seconds": {label: [value / PASSES for value in values] for label, values in seconds.items()},
            }
        )
        progress(f"inference, batch {batch}: done")
    return rows


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, in Markdown."""
    lines = []
    for row in rows:
        plain = statistics.median(row["seconds"]["plain"])
        for label, seconds in row["seconds"].items():
            median = statistics.median(seconds)
            where = f"{row['model']}, {row['image_size']}, batch {row['batch']}"
            rate = f"{row['batch'] / median:.1f}"
            spread = median_and_spread([1000 * s for s in seconds], digits=1)
            lines.append([where, label, spread, rate, f"{plain / median:.2f}"])
    return table(["model, image", "", "ms: median (min - max)", "images/s", "images/s against plain"], lines)
