"""What a profiled training step tells: the peak, what is alive there, and the curve that leads to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: Kinds of memory, in the order in which reports show them.
CATEGORIES = ("parameters", "buffers", "optimizer state", "gradients", "inputs", "activations", "temporaries")

#: What each category means, for people.
CATEGORY_TEXT = {
    "parameters": "the model's weights",
    "buffers": "running statistics and other buffers",
    "optimizer state": "moments and other state of the optimizer",
    "gradients": "gradients of the parameters",
    "inputs": "images and targets",
    "activations": "values that forward made, and values that backward rebuilt",
    "temporaries": "gradients of activations, and what operators take for themselves while they run",
}


@dataclass(frozen=True)
class TensorRecord:
    """A tensor alive at the peak.

    Attributes:
        nbytes: size in bytes.
        category: one of :data:`CATEGORIES`.
        kind: what it is, such as ``"convolution output"``.
        operator: the ``aten`` operator that made it, ``""`` if it was there before the step.
        module: dotted path of the module at work.
        stage: the part of the model that the module belongs to.
        stream: ``"stride 4"`` for an image-like tensor of a quarter of the input's side, ``""`` for others.
        phase: when it was made: ``"before"``, ``"forward"``, ``"backward"`` or ``"optimizer"``.
    """

    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    category: str
    kind: str
    operator: str
    module: str
    stage: str
    stream: str
    phase: str


@dataclass(frozen=True)
class TimelinePoint:
    """Memory while one operator ran.

    Attributes:
        index: the operator's number in the step.
        nbytes: the highest sum of live bytes while it ran.
    """

    index: int
    nbytes: int
    phase: str
    operator: str
    module: str


@dataclass(frozen=True)
class MemoryReport:
    """The memory of one training step. All sizes are in bytes.

    Attributes:
        name: of the model.
        method: ``"predicted"`` (fake tensors) or ``"measured"`` (the allocator's own figures).
        device: ``"cpu"`` or ``"cuda"``.
        mode: how activations are treated, such as ``"reversible"``; ``""`` if unknown.
        batch: samples in the step.
        image: height and width in pixels; None if no input is an image batch.
        optimizer: its name, ``"none"`` for forward and backward only.
        precision: ``"float32"``, or the dtype of autocast.
        peak: the highest sum of live bytes in the step.
        categories: bytes by category at the peak; they add up to ``peak``.
        stages, streams, kinds: bytes at the peak of activations and temporaries, grouped three ways.
        tensors: what is alive at the peak, largest first; small ones are joined in a last record.
        timeline: the step in at most some thousand points; maxima are kept.
        peak_index: the operator at the peak, as in ``timeline``.
        num_operators: in the step.
        notes: what a reader has to know to compare this figure with another.
    """

    name: str
    method: str
    device: str
    mode: str
    batch: int
    image: tuple[int, int] | None
    optimizer: str
    precision: str
    peak: int
    categories: dict[str, int]
    stages: dict[str, int]
    streams: dict[str, int]
    kinds: dict[str, int]
    tensors: list[TensorRecord]
    timeline: list[TimelinePoint]
    peak_index: int
    num_operators: int
    notes: list[str] = field(default_factory=list)

    @property
    def activations(self) -> int:
        """Bytes at the peak that grow with the batch: activations and temporaries."""
        return self.categories["activations"] + self.categories["temporaries"]

    @property
    def per_sample(self) -> float:
        """Bytes at the peak that grow with the batch, for one sample."""
        return (self.activations + self.categories["inputs"]) / self.batch

    @property
    def peak_point(self) -> TimelinePoint:
        """The operator at the peak."""
        return next(point for point in self.timeline if point.index == self.peak_index)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"per_sample": self.per_sample}

    def to_json(self) -> str:
        """All of the report as JSON."""
        return json.dumps(self.to_dict(), indent=1)


def thin_timeline(points: Sequence[TimelinePoint], keep: int, limit: int = 1200) -> list[TimelinePoint]:
    """At most about ``limit`` points: of each run of neighbours the highest and the lowest, and number ``keep`` for sure."""
    if len(points) <= limit:
        return list(points)
    width = -(-2 * len(points) // limit)
    chosen: list[TimelinePoint] = []
    for start in range(0, len(points), width):
        group = points[start : start + width]
        best = {min(group, key=lambda p: p.nbytes), max(group, key=lambda p: p.nbytes)}
        best |= {p for p in group if p.index == keep}
        chosen += sorted(best, key=lambda p: p.index)
    return chosen
