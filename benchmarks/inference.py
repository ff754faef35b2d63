"""Images per second in eval mode: the yardstick, RevBiFPN as it is, and RevBiFPN after ``revbifpn.fuse``.

::

    python -m benchmarks.inference  # S0 at 224 pixels, batches of 1 and 8
    python -m benchmarks.inference --model revbifpn_s3 --batches 1 4 --json inference.json

Images come in as torch makes them, contiguous, and so are the yardstick's weights; it is measured in channels_last too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import revbifpn
from benchmarks.common import describe, environment, median_and_spread, table, time_side_by_side, update_json
from benchmarks.networks import Network, image_size_of

#: Forward passes that are timed together: one of a single image is too short.
PASSES = 4


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
            model = revbifpn.fuse(model) if label.endswith("fused") else model
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


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="revbifpn_s0", help="timm's name of a RevBiFPN")
    parser.add_argument("--image-size", type=int, help="in pixels; the model's own unless it is given")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, help="torch's, unless they are given")
    parser.add_argument("--json", type=Path, help="file to write, under the model's name")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    size = args.image_size or image_size_of(args.model)
    rows = measure(args.model, size, args.batches, args.repeats, partial(print, flush=True))
    where = environment()
    print(f"{describe(where)}.\n\n{as_table(rows)}")
    if args.json is not None:
        update_json(args.json, {args.model: {"environment": where, "rows": rows}})


if __name__ == "__main__":
    main()
