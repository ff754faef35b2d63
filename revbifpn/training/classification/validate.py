"""Top-1 of a model's weights on a validation set, beside the published accuracy and file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from mmengine.config import Config
from timm.data import resolve_data_config

import revbifpn  # noqa: F401  (registers the timm models)
from revbifpn.models.checkpoints import locate, sha256_of
from revbifpn.models.published_weights import PUBLISHED
from revbifpn.training.checks import check_data
from revbifpn.training.runner import build_runner


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        top1, top5: percent.
        images: how many were counted.
        sha256: of the checkpoint's file.
        published_top1, published_sha256: of the published weights; None where there are none.
    """

    model: str
    checkpoint: str
    images: int
    top1: float
    top5: float
    sha256: str
    published_top1: float | None
    published_sha256: str | None

    def __str__(self) -> str:
        if self.published_sha256 is None:
            origin = f"(nothing is published for {self.model})"
        elif self.sha256 == self.published_sha256:
            origin = "(the published file)"
        else:
            origin = f"(not the published file, whose sha256 is {self.published_sha256})"
        paper = "" if self.published_top1 is None else f" (paper: {self.published_top1:.1f} on ImageNet-1k)"
        return (
            f"model:      {self.model}\ncheckpoint: {self.checkpoint}\nsha256:     {self.sha256} {origin}\n"
            f"images:     {self.images}\ntop-1:      {self.top1:.2f} %{paper}\ntop-5:      {self.top5:.2f} %"
        )


def validate(
    model: str,
    checkpoint: str | Path,
    data: Path,
    num_classes: int = 1000,
    split: str = "val",
    batch_size: int = 64,
    workers: int = 4,
    input_size: int | None = None,
    crop_pct: float | None = None,
    on_error: str = "stop",
    ema: bool = True,
    allow_non_finite: bool = False,
    work_dir: Path = Path("work_dirs/validate"),
) -> Validation:
    """Validate a checkpoint on an image folder, with the preprocessing of the timm model's configuration.

    Args:
        model: timm's name, such as ``"revbifpn_s0"``.
        checkpoint: weights in the published, timm's or this project's layout, a file or an address.
        data: folder with ``<split>/<class>/<image>``.
        num_classes: of the checkpoint and of the data.
        input_size, crop_pct: side of the images in pixels, and the part that the crop keeps; None for the model's.
        on_error: ``"stop"`` at an image that cannot be decoded, or ``"skip"`` it.
        ema: where the file has weights and their exponential moving average, True validates the average.
        allow_non_finite: validate weights that are NaN or infinite too.
        work_dir: for MMEngine's logs.

    Raises:
        FileNotFoundError: if the data or the checkpoint is missing.
        CheckpointError: if the checkpoint is damaged or does not fit the model.
        DataError: if the data does not fit the model, or an image cannot be decoded.
        ValueError: if timm knows no such model.
    """
    if not timm.is_model(model):
        raise ValueError(f"timm knows no model {model!r}; revbifpn_s0 to revbifpn_s6 are those of this project")
    file = locate(checkpoint)
    preprocessing = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(model, allow_unregistered=False).to_dict())
    transform: dict[str, Any] = {
        "input_size": input_size or preprocessing["input_size"][-1],
        "crop_pct": crop_pct or preprocessing["crop_pct"],
        "interpolation": preprocessing["interpolation"],
    }
    loader = dict(
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=dict(type="default_collate"),
        sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
        dataset=dict(
            type="ClassificationDataset",
            root=str(data),
            split=split,
            num_classes=num_classes,
            on_error=on_error,
            transform=transform,
        ),
    )
    cfg = Config(
        dict(
            default_scope="mmengine",
            launcher="none",
            work_dir=str(work_dir),
            model=dict(
                type="ImageClassifier",
                name=model,
                num_classes=num_classes,
                checkpoint=str(file),
                ema=ema,
                allow_non_finite=allow_non_finite,
                remake_classifier=False,
                data_preprocessor=dict(
                    type="ImagePreprocessor", mean=preprocessing["mean"], std=preprocessing["std"], channels_last=True
                ),
            ),
            test_dataloader=loader,
            test_evaluator=dict(type="TopKAccuracy", topk=(1, 5)),
            test_cfg=dict(type="TestLoop"),
        )
    )
    check_data(cfg, "test_dataloader")
    metrics = build_runner(cfg).test()
    published = PUBLISHED.get(model.removeprefix("revbifpn_"))
    return Validation(
        model=model,
        checkpoint=str(checkpoint),
        images=int(metrics["accuracy/images"]),
        top1=metrics["accuracy/top1"],
        top5=metrics["accuracy/top5"],
        sha256=sha256_of(file),
        published_top1=published.top1 if published else None,
        published_sha256=published.sha256 if published else None,
    )
