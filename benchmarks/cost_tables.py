"""The results of :mod:`benchmarks.training_cost` in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import growth, inference
from benchmarks.common import describe, median_and_spread, table

TITLES = {
    "s0": "RevBiFPN-S0 beside common networks",
    "s2": "At equal accuracy: RevBiFPN-S2, EfficientNet-B0 and B1",
    "s3": "At equal accuracy: RevBiFPN-S3 and EfficientNet-B3",
    "s6": "At equal accuracy: RevBiFPN-S6 and EfficientNet-B7",
}


@dataclass(frozen=True)
class Cost:
    """What one network costs.

    Attributes:
        label: its name in tables.
        name, mode, channels_last, batch, image_size, top1: see :class:`benchmarks.networks.Network`.
        cpu, cuda: activations of a sample in bytes, measured on a CPU and predicted for CUDA; None where there are none.
        seconds: of each timed step.
    """

    label: str
    name: str
    mode: str
    channels_last: bool
    batch: int
    image_size: int
    top1: float | None
    cpu: float | None
    cuda: float | None
    seconds: list[float]

    @property
    def per_sample(self) -> float | None:
        """Median seconds of a step for one of its samples."""
        return statistics.median(self.seconds) / self.batch if self.seconds else None


def costs_of(group: Mapping[str, Any]) -> list[Cost]:
    """A group's networks of which anything is known."""
    memory = group.get("memory", {}).get("bytes_per_sample", {})
    seconds = group.get("time", {}).get("seconds", {})
    return [
        Cost(
            label=label,
            **network,
            cpu=memory.get(label, {}).get("cpu"),
            cuda=memory.get(label, {}).get("cuda"),
            seconds=seconds.get(label, []),
        )
        for label, network in group["networks"].items()
        if label in memory or label in seconds
    ]


def front_of(costs: Iterable[Cost]) -> list[Cost]:
    """The Pareto front: networks than which none takes both less memory and less time; by rising memory."""
    front: list[Cost] = []
    known = [cost for cost in costs if cost.cpu is not None and cost.per_sample is not None]
    for cost in sorted(known, key=lambda c: (c.cpu or 0, c.per_sample or 0)):
        if not front or (cost.per_sample or 0) < (front[-1].per_sample or 0):
            front.append(cost)
    return front


def group_table(group: Mapping[str, Any]) -> str:
    """Memory and time of a group; times against the first network's (the yardstick's) and the network's own in stored mode."""
    costs = costs_of(group)
    first = next((cost.per_sample for cost in costs if cost.per_sample), None)
    stored = {cost.name: cost.per_sample for cost in costs if cost.mode == "stored"}
    rows = []
    for cost in costs:
        spread = median_and_spread([1000 * s / cost.batch for s in cost.seconds], digits=0) if cost.seconds else "-"
        own = None if cost.mode.startswith("plain") else stored.get(cost.name)
        ratios = [f"{cost.per_sample / base:.2f}" if cost.per_sample and base else "-" for base in (first, own)]
        memory = [f"{value / 1e6:.3g}" if value is not None else "-" for value in (cost.cpu, cost.cuda)]
        rows.append([cost.label, f"{cost.image_size}, {cost.batch}", cost.top1 or "-", *memory, spread, *ratios])
    header = ["network", "image, batch", "top-1, %", "MB a sample, CPU", "predicted for CUDA"]
    return table([*header, "ms a sample: median (min - max)", "against plain", "against its own stored mode"], rows)


def markdown(results: Mapping[str, Any]) -> str:
    """All that was measured, each part with its environment."""
    lines = ["# What a training step costs", "", "Written by `python -m benchmarks.training_cost`."]
    for name, group in results.get("cost", {}).items():
        lines += ["", f"## {TITLES[name]}", ""]
        lines += [
            f"{part.capitalize()}: {describe(group[part]['environment'])}." for part in ("memory", "time") if part in group
        ]
        lines += ["", group_table(group)]
        if front := front_of(costs_of(group)):
            named = "; ".join(f"{cost.label} (top-1 {cost.top1 or 'unknown'})" for cost in front)
            lines += ["", f"On the Pareto front of memory and time, where none here is better in both: {named}."]
    if "growth" in results:
        lines += ["", "## Growth", "", f"RevBiFPN-S0. {describe(results['growth']['environment'])}."]
        for sweep in results["growth"]["sweeps"]:
            lines += ["", growth.as_table(sweep)]
    if "inference" in results:
        lines += ["", "## Inference", "", f"{describe(results['inference']['environment'])}.", ""]
        lines += [inference.as_table(results["inference"]["rows"])]
    return "\n".join(lines) + "\n"
