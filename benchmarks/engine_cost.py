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
import os
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import (
    describe,
    environment,
    gradients,
    median_and_spread,
    table,
    time_side_by_side,
    trainer,
    update_json,
)
from benchmarks.networks import Network, build_all

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


def measure(name: str, image_size: int, batch: int, repeats: int) -> dict[str, Any]:
    """Seconds and operators of every mode."""
    models = build_all((Network(name, mode, batch, image_size) for mode in MODES), drop_rate=0.0)
    batches = {network: (network.images(), network.labels()) for network in models}
    steps = {network.mode: trainer(model, *batches[network]) for network, model in models.items()}
    seconds = time_side_by_side(steps, repeats, warmup=3)
    operators = {}
    for network, model in models.items():

        def run(network: Network = network, model: nn.Module = model) -> None:
            model.zero_grad(set_to_none=True)
            gradients(model, *batches[network])

        counts = count_dispatched(run)
        operators[network.mode] = {
            "dispatched": counts.total(),
            "aten": count_aten(run),
            "by_name": dict(counts.most_common()),
        }
    return {"model": name, "image_size": image_size, "batch": batch, "seconds": seconds, "operators": operators}


def as_table(row: Mapping[str, Any]) -> str:
    """What was measured, in Markdown."""
    first = statistics.median(next(iter(row["seconds"].values())))
    header = [
        "mode",
        "step, s: median (min - max)",
        "against plain",
        "operators dispatched",
        "of them detach",
        "aten operators",
    ]
    rows = []
    for mode, seconds in row["seconds"].items():
        operators = row["operators"][mode]
        counts = (operators["dispatched"], operators["by_name"].get("detach", 0), operators["aten"])
        ratio = f"{statistics.median(seconds) / first:.2f}"
        rows.append([mode, median_and_spread(seconds), ratio, *(f"{count:,}" for count in counts)])
    return table(header, rows)


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
    print(describe(env), flush=True)
    row = measure(args.model, args.image_size, args.batch, args.repeats)
    print(f"\n{as_table(row)}")
    if args.json:
        update_json(args.json, {"environment": env, **row})


if __name__ == "__main__":
    main()
