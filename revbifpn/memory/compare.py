"""Models side by side: memory per sample, compute, accuracy; and the paper's figures beside this project's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import revbifpn
from revbifpn.memory.published import FASTER_RCNN_FIGURE, IMAGENET_FIGURE, MASK_RCNN_TABLE, PrintedPoint
from revbifpn.memory.report import MemoryReport
from revbifpn.memory.rows import PRINTED, ComparisonRow
from revbifpn.memory.sources import (
    ConfigSubject,
    Settings,
    Size,
    Subject,
    SubjectError,
    TimmSubject,
    count_macs,
    count_parameters,
    profile_subject,
    read_config,
)

#: Told what is being worked on.
Progress = Callable[[str], None]


def row_of(report: MemoryReport, subject: Subject, params: int, macs: float | None) -> ComparisonRow:
    """A report as a row."""
    return ComparisonRow(
        name=subject.name,
        family=subject.family,
        mode=report.mode,
        method=report.method,
        image=report.image,
        batch=report.batch,
        params=params,
        macs=macs,
        per_sample=report.per_sample,
        peak=report.peak,
        top1=subject.top1,
    )


def compare(
    subjects: Sequence[Subject],
    modes: Sequence[str] | None,
    batch: int,
    image: Size | None,
    settings: Settings,
    progress: Progress = lambda text: None,
) -> Iterator[tuple[ComparisonRow, MemoryReport]]:
    """Profile every subject in every mode.

    Args:
        modes: None for all that a subject has; otherwise those of them that it has.
        image: None for each subject's own size.
    """
    for subject in subjects:
        size = image or subject.image
        progress(f"{subject.name}: counting parameters and MACs")
        params, macs = count_parameters(subject, size), count_macs(subject, size)
        for mode in subject.modes:
            if modes is None or mode in modes:
                progress(f"{subject.name}, {mode}, batch {batch}, {size[0]}x{size[1]}")
                report = profile_subject(subject, mode, batch, size, settings)
                yield row_of(report, subject, params, macs), report
        subject.release()


def paper_subjects(figure: str) -> tuple[list[Subject], int]:
    """The models of one of the paper's figures, and the batch to profile them with.

    Args:
        figure: ``"imagenet"``, ``"faster-rcnn"`` or ``"mask-rcnn"``.
    """
    if figure == "imagenet":
        names = [f"revbifpn_s{i}" for i in range(7)] + [f"tf_efficientnet_b{i}" for i in range(8)]
        return [TimmSubject(name) for name in names], 16
    return _detectors(figure), 2


def paper_points(figure: str) -> list[ComparisonRow]:
    """What the paper printed, as rows; memory is per sample (for Mask R-CNN half of what is printed for two images)."""
    points, images = {
        "imagenet": (IMAGENET_FIGURE, 1),
        "faster-rcnn": (FASTER_RCNN_FIGURE, 1),
        "mask-rcnn": (MASK_RCNN_TABLE, 2),
    }[figure]
    return [_printed_row(point, images) for point in points]


def _printed_row(point: PrintedPoint, images: int) -> ComparisonRow:
    reversible = point.name.startswith("revbifpn")
    return ComparisonRow(
        name=point.name,
        family=point.name.split("_")[0],
        mode="reversible" if reversible else "stored",
        method=PRINTED,
        image=None,
        batch=images,
        params=0,
        macs=None if point.gmacs is None else point.gmacs * 1e9,
        per_sample=point.gigabytes * 1e9 / images,
        peak=None,
        top1=point.quality,
    )


#: Why the paper's figures and these differ.
PAPER_DIFFERENCES = (
    "The paper's figures are what its training processes took on a GPU, divided by the batch: the framework's own memory, "
    "cuDNN's workspaces, the caching allocator's reserve, and for each sample a share of weights, gradients and optimizer "
    "state are in them. The figures here are live tensors, predicted for a GPU without its workspaces: 'per sample' is what "
    "grows with the batch, 'whole step' is everything, weights and optimizer state too. Batch, framework version and "
    "precision of the paper's runs are not printed; ratios compare better than absolute figures. For detectors 'per sample' "
    "is the whole step divided by its two images, which is what MMDetection logs."
)


def _detectors(figure: str) -> list[Subject]:
    """The paper's detectors: this project's configs, MMDetection's HRNets and, for Faster R-CNN, ResNet-101-FPN."""

    def subject(path: str, name: str, **changes: Any) -> Subject:
        cfg = read_config(path)
        cfg.merge_from_dict(changes)
        if figure == "faster-rcnn":
            _without_masks(cfg.model)
        result = ConfigSubject.of(cfg, name)
        result.family = name.split("_")[0]
        points = FASTER_RCNN_FIGURE if figure == "faster-rcnn" else MASK_RCNN_TABLE
        result.top1 = next((point.quality for point in points if point.name == name), None)
        return result

    own = Path(revbifpn.__file__).parents[1] / "configs" / "mask_rcnn"
    if not own.is_dir():
        raise SubjectError(
            f"this figure needs the project's configs ({own} is not there): run it in a clone of the repository"
        )
    subjects = [subject(str(own / f"mask-rcnn_revbifpn-s{i}_hrfpn_1x_coco.py"), f"revbifpn_s{i}") for i in range(7)]
    subjects += [subject(f"mmdet::hrnet/mask-rcnn_hrnetv2p-w{w}-1x_coco.py", f"hrnetv2p_w{w}") for w in (18, 32)]
    if figure == "faster-rcnn":
        wide = [48, 96, 192, 384]
        stages = {f"model.backbone.extra.stage{i}.num_channels": tuple(wide[:i]) for i in (2, 3, 4)}
        w32 = "mmdet::hrnet/mask-rcnn_hrnetv2p-w32-1x_coco.py"
        subjects.append(subject(w32, "hrnetv2p_w48", **stages, **{"model.neck.in_channels": wide}))
        subjects.append(subject("mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py", "resnet101_fpn"))
    return subjects


def _without_masks(model: Any) -> None:
    """Mask R-CNN less its mask branch is Faster R-CNN."""
    model.type = "FasterRCNN"
    for key in ("mask_roi_extractor", "mask_head"):
        model.roi_head.pop(key, None)
