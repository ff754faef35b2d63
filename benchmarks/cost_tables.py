"""The results of :mod:`benchmarks.training_cost` in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import growth, inference
from benchmarks.common import describe, median_and_spread, table
from benchmarks.networks import variant_of

TITLES = {
    "s0": "RevBiFPN-S0 beside common networks",
    "s2": "At equal accuracy: RevBiFPN-S2, EfficientNet-B0 and B1",
    "s3": "At equal accuracy: RevBiFPN-S3 and EfficientNet-B3",
    "s6": "At equal accuracy: RevBiFPN-S6 and EfficientNet-B7",
}

#: What some modes are called where nobody knows them yet.
MODES = {
    "plain": "an ordinary network of the same layers",
    "plain checkpointing": "the same, checkpointed stage by stage",
}
#: Detectors of about equal published box AP.
DETECTORS = (
    ("revbifpn_s2", "hrnetv2p_w18"),
    ("revbifpn_s4", "hrnetv2p_w32", "resnet101_fpn"),
    ("revbifpn_s5", "hrnetv2p_w48"),
)
NAMES = {f"efficientnet_b{i}": f"EfficientNet-B{i}" for i in range(8)} | {
    **{f"hrnetv2p_w{width}": f"HRNetV2p-W{width}" for width in (18, 32, 48)},
    "resnet101_fpn": "ResNet-101-FPN",
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


def modes_table(group: Mapping[str, Any]) -> str:
    """A RevBiFPN's own modes and the yardstick: what fits where :func:`group_table` is too long."""
    rows = []
    costs = [cost for cost in costs_of(group) if variant_of(cost.name) and not cost.channels_last]
    plain = next((cost.per_sample for cost in costs if cost.mode == "plain" and cost.per_sample), None)
    for cost in costs:
        spread = median_and_spread([1000 * s / cost.batch for s in cost.seconds], digits=0) if cost.seconds else "-"
        ratio = f"{cost.per_sample / plain:.2f}" if cost.per_sample and plain else "-"
        rows.append([MODES.get(cost.mode, cost.mode), _megabytes(cost.cpu), spread, ratio])
    header = ["mode", "activations of a sample", "ms a sample: median (min - max)", "time against the ordinary network"]
    return table(header, rows)


def equal_accuracy_table(groups: Iterable[Mapping[str, Any]], detectors: Sequence[Mapping[str, Any]]) -> str:
    """Memory and time beside networks of equal published accuracy: the README's first table.

    Args:
        groups: of networks of equal published accuracy.
        detectors: rows of the paper's figure of Faster R-CNN, see :mod:`benchmarks.paper_figures`.
    """
    kept, saved = "memory, activations kept", "rebuilt or checkpointed"
    rows: list[list[str]] = [["**ImageNet, one image**", "top-1, %", "activations", "", "", ""]]
    for group in groups:
        costs = {(cost.name, cost.mode): cost for cost in costs_of(group)}
        for name in dict.fromkeys(cost.name for cost in costs.values()):
            pair = [costs.get((name, "stored")), costs.get((name, "reversible" if variant_of(name) else "checkpointing"))]
            first = next(cost for cost in pair if cost)
            memory = [_megabytes(cost.cuda if cost else None) for cost in pair]
            times = [f"{1000 * cost.per_sample:.0f} ms" if cost and cost.per_sample else "-" for cost in pair]
            rows.append([f"{_title(name)}, {first.image_size}x{first.image_size}", str(first.top1), *memory, *times])
    rows.append(["**Faster R-CNN, one image of 800x1344**", "box AP", "whole step", "", "", ""])
    for names in DETECTORS:
        for name in names:
            by_mode = {row["mode"]: row for row in detectors if row["name"] == name}
            if by_mode:
                modes = ("stored", "reversible" if variant_of(name) else "checkpointing")
                memory = [_gigabytes(by_mode.get(mode)) for mode in modes]
                rows.append([_title(name), str(next(iter(by_mode.values()))["box_ap"]), *memory, "-", "-"])
    return table(["", "published accuracy", kept, saved, "time, activations kept", saved], rows)


def beside_checkpointed_b0(group: Mapping[str, Any]) -> str:
    """What a reader with a CPU has to know: RevBiFPN-S0 against EfficientNet-B0 under timm's checkpointing, in a sentence."""
    costs = {(cost.name, cost.mode): cost for cost in costs_of(group)}
    ours, theirs = costs["revbifpn_s0", "reversible"], costs["efficientnet_b0", "checkpointing"]
    parts = [
        f"{_megabytes(cost.cpu)} of activations and {1000 * (cost.per_sample or 0):.0f} ms a sample" for cost in (theirs, ours)
    ]
    less = (theirs.per_sample or 0) < (ours.per_sample or 0)
    return (
        f"On this CPU a checkpointed EfficientNet-B0 (top-1 {theirs.top1}) takes {'less' if less else 'more'} time than "
        f"RevBiFPN-S0 ({ours.top1}): {parts[0]} against {parts[1]}."
    )


def detector_table(part: Mapping[str, Any]) -> str:
    """A part of :mod:`benchmarks.detection`: whole steps in time and memory, against the last row's or the first one's."""
    rows = part["rows"]
    key = "parts" if "parts" in rows[0] else "frozen_stages"
    base = statistics.median(rows[-1 if key == "parts" else 0]["seconds"])
    lines = [
        [
            row[key],
            median_and_spread(row["seconds"], digits=2),
            f"{statistics.median(row['seconds']) / base:.2f}",
            f"{row['peak'] / 1e9:.2f} GB",
        ]
        for row in rows
    ]
    what = f"{key}: RevBiFPN-{part['variant'].upper()}, {part['batch']} images of {part['side']}x{part['side']}"
    return table([what, "s a step: median (min - max)", "time", "memory, predicted for CUDA"], lines)


def _megabytes(nbytes: float | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 1e6:,.3g} MB" if nbytes < 999.5e6 else f"{nbytes / 1e6:,.0f} MB"


def _gigabytes(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else f"{row['step_per_sample'] / 1e9:.2f} GB"


def _title(name: str) -> str:
    """A network's name as papers write it; RevBiFPN's in bold."""
    own = variant_of(name)
    return f"**RevBiFPN-{own.upper()}**" if own else NAMES.get(name, name)


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
