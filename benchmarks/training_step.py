"""Memory and time of one training step of the classifiers, stored against reversible, side by side.

    python -m benchmarks.training_step [--models s0 s1 ...] [--batch 8] [--json FILE]

*Activations* are the highest sum of live allocations during forward and backward, less the parameters' gradients, divided by
the batch size; allocations before the step (weights, images) do not count. The allocator's own figures are read, by
``revbifpn.memory``. MB are 10**6 bytes.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import describe, environment, median_and_spread, time_side_by_side
from revbifpn import RevBiFPN, set_exact, set_reversible
from revbifpn.memory import profile_training
from revbifpn.models import VARIANTS


def step(model: nn.Module, image: Tensor) -> None:
    """One forward and backward pass."""
    model(image).square().mean().backward()


def peak_bytes(model: nn.Module, image: Tensor) -> int:
    """The highest sum of live allocations in one step, above what was there before it."""
    report = profile_training(
        model, image, loss=lambda output: output.square().mean(), device=image.device.type, method="measure"
    )
    return report.peak - sum(report.categories[name] for name in ("parameters", "buffers", "inputs"))


def measure(name: str, batch: int, repeats: int, channels_last: bool, device: str) -> dict[str, Any]:
    """Activations and seconds of the three modes."""
    torch.manual_seed(0)
    reversible = RevBiFPN(name).to(device).train()
    models = {
        "stored": set_reversible(copy.deepcopy(reversible), False),
        "reversible": reversible,
        "exact": set_exact(copy.deepcopy(reversible)),
    }
    size = VARIANTS[name].image_size
    image = torch.randn(batch, 3, size, size, device=device)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    gradients = sum(p.nbytes for p in reversible.parameters())
    activations = {mode: (peak_bytes(model, image) - gradients) / batch / 1e6 for mode, model in models.items()}

    def run(model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        step(model, image)

    seconds = time_side_by_side({mode: lambda model=model: run(model) for mode, model in models.items()}, repeats)  # type: ignore[misc]
    return {
        "model": f"revbifpn_{name}",
        "batch": batch,
        "image_size": size,
        "channels_last": channels_last,
        "activations_mb_per_sample": activations,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["s0", "s1", "s2"], choices=list(VARIANTS), help="variants to measure")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--contiguous", action="store_true", help="contiguous images instead of channels_last")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    env = environment()
    print(describe(env))
    print("\n| model | mode | activations, MB a sample | step, s: median (min - max) | time against stored |")
    print("|---|---|---|---|---|")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name in args.models:
        row = measure(name, args.batch, args.repeats, not args.contiguous, device)
        rows.append(row)
        stored = statistics.median(row["seconds"]["stored"])
        for mode, seconds in row["seconds"].items():
            memory = f"{row['activations_mb_per_sample'][mode]:.2f}"
            ratio = f"{statistics.median(seconds) / stored:.2f}"
            cells = [f"{row['model']}, {row['image_size']}", mode, memory, median_and_spread(seconds), ratio]
            print("| " + " | ".join(cells) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"environment": env, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
