"""One line of a comparison: a model in a mode, its training memory, its compute and its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: The method of rows whose figures the RevBiFPN paper printed; all others come from this profiler.
PRINTED = "printed in the paper"

#: The fields of a row that hold memory for one sample, and their names for people.
MEMORY = {"per_sample": "memory per sample", "step_per_sample": "whole step per sample"}
#: What these fields are.
MEMORY_TEXT = {
    "per_sample": "Memory per sample is what grows with the batch: inputs, activations and temporaries at the peak.",
    "step_per_sample": "Whole step per sample is all memory at the peak, weights and gradients too, divided by the batch.",
}
#: The fields of a row that hold published accuracy, and their names for people.
ACCURACY = {"top1": "ImageNet top-1 accuracy (%)", "box_ap": "box AP on COCO val2017"}


@dataclass(frozen=True)
class ComparisonRow:
    """A model in one mode.

    Attributes:
        name: of the model.
        family: what models of one kind share; plots give a family one colour.
        mode: how activations are treated, such as ``"reversible"``.
        method: ``"predicted"``, ``"measured"``, or :data:`PRINTED`.
        image: height and width in pixels; None if unknown.
        batch: samples in the step; None if unknown.
        params: numbers in the model's parameters; None if unknown.
        macs: multiply-accumulates of one sample's forward pass; None if unknown.
        per_sample: bytes at the peak that grow with the batch, for one sample; None if unknown.
        step_per_sample: all bytes at the peak, divided by the batch; None if unknown.
        peak: all bytes at the peak; None if unknown.
        top1: published top-1 accuracy on ImageNet in percent; None if unknown.
        box_ap: published box AP on COCO val2017; None if unknown.
    """

    name: str
    family: str
    mode: str
    method: str
    image: tuple[int, int] | None = None
    batch: int | None = None
    params: int | None = None
    macs: float | None = None
    per_sample: float | None = None
    step_per_sample: float | None = None
    peak: int | None = None
    top1: float | None = None
    box_ap: float | None = None


def accuracies_in(rows: Sequence[ComparisonRow]) -> list[str]:
    """Return the fields of :data:`ACCURACY` that at least one row has, the one that most rows have first."""
    counts = {name: sum(getattr(row, name) is not None for row in rows) for name in ACCURACY}
    return sorted((name for name, count in counts.items() if count), key=lambda name: -counts[name])
