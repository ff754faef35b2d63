"""What the engine costs beside its operators: the host's time of a step whose tensors are tiny, and how many operators run.

    python -m benchmarks.engine_cost [--repeats 15] [--json FILE]

RevBiFPN-S0, 32x32, batch 2, without dropout, one thread. The tensors are so small that the time is Python's and the
dispatcher's, which is what a GPU waits for. A step is forward, cross entropy, backward and SGD; modes take turns step by step.

Operators are counted in two ways, both over forward, cross entropy and backward, without the optimizer, whose share is the
same in all modes:

- *dispatched*: calls that a ``TorchDispatchMode`` sees, below autograd, views and detaches included. This is the figure that
  is quoted.
- *aten*: events of ``torch.profiler`` whose name begins with ``aten::``; operators that others call count too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import describe, environment, median_and_spread, time_side_by_side
from benchmarks.modes import available

MODES = ("plain", "stored", "reversible", "exact")


class CountOperators(TorchDispatchMode):
    """Counts dispatched operators by name while it is entered; backward passes run in it too."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Forward, loss and backward."""
    F.cross_entropy(model(images), labels).backward()


def count_dispatched(run: Callable[[], object]) -> Counter[str]:
    """Operators by name that reach the dispatcher below autograd."""
    with CountOperators() as counter:
        run()
    return counter.counts


def count_aten(run: Callable[[], object]) -> int:
    """``aten`` operators as the profiler records them."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports missing GPUs on stderr
    with profile(activities=[ProfilerActivity.CPU]) as recording:
        run()
    events = recording.profiler.kineto_results.events()  # type: ignore[union-attr]
    return sum(event.name().startswith("aten::") for event in events)


def trainer(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A whole training step as a function; its learning rate leaves the weights, and so the streams' range, as they are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        gradients(model, images, labels)
        optimizer.step()

    return step


def measure(name: str, image_size: int, batch: int, repeats: int) -> dict[str, Any]:
    """Seconds and operators of every mode."""
    images = torch.randn(batch, 3, image_size, image_size)
    labels = torch.arange(batch)
    models = available(name, MODES, batch, image_size, drop_rate=0.0)
    steps = {mode: trainer(model, images, labels) for mode, model in models.items()}
    seconds = time_side_by_side(steps, repeats, warmup=3)
    operators = {}
    for mode, model in models.items():

        def run(model: nn.Module = model) -> None:
            model.zero_grad(set_to_none=True)
            gradients(model, images, labels)

        counts = count_dispatched(run)
        operators[mode] = {
            "dispatched": counts.total(),
            "aten": count_aten(run),
            "most": dict(counts.most_common(8)),
        }
    return {"model": name, "image_size": image_size, "batch": batch, "seconds": seconds, "operators": operators}


def print_table(row: Mapping[str, Any]) -> None:
    first = statistics.median(next(iter(row["seconds"].values())))
    print("\n| mode | step, s: median (min - max) | against plain | operators dispatched | of them detach | aten operators |")
    print("|---|---|---|---|---|---|")
    for mode, seconds in row["seconds"].items():
        operators = row["operators"][mode]
        cells = [mode, median_and_spread(seconds), f"{statistics.median(seconds) / first:.2f}"]
        cells += [f"{operators['dispatched']:,}", f"{operators['most'].get('detach', 0):,}", f"{operators['aten']:,}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="revbifpn_s0")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each mode")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    env = environment()
    print(describe(env))
    row = measure(args.model, args.image_size, args.batch, args.repeats)
    print_table(row)
    if args.json:
        args.json.write_text(json.dumps({"environment": env, **row}, indent=1) + "\n")


if __name__ == "__main__":
    main()
