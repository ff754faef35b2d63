"""One line of a comparison: a model in a mode, its training memory, its compute and its accuracy."""

from __future__ import annotations

from dataclasses import dataclass

#: The method of rows that this project did not compute.
PRINTED = "printed in the paper"
#: What a row's accuracy is, for ImageNet models.
TOP1 = "top-1 accuracy in percent"


@dataclass(frozen=True)
class ComparisonRow:
    """A model in one mode.

    Attributes:
        name: of the model.
        family: models of one kind; plots give them one colour.
        mode: how activations are treated, such as ``"reversible"``.
        method: ``"predicted"``, ``"measured"`` or ``"printed in the paper"``.
        image: height and width in pixels; None if unknown.
        batch: samples in the step.
        params: numbers in the model's parameters; 0 if unknown.
        macs: multiply-accumulates of one sample's forward pass; None if unknown.
        per_sample: bytes at the peak that grow with the batch, for one sample.
        peak: bytes of the whole step at its peak; None if unknown.
        top1: published ImageNet accuracy in percent (box AP for detectors); None if unknown.
    """

    name: str
    family: str
    mode: str
    method: str
    image: tuple[int, int] | None
    batch: int
    params: int
    macs: float | None
    per_sample: float
    peak: int | None
    top1: float | None
