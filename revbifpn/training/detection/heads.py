"""Changes to a detector's config that other data ask for: classes, with masks or without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from revbifpn.integrations.config_parts import dictionaries_in
from revbifpn.training.checks import LOADERS, datasets
from revbifpn.training.errors import ConfigError

_HEADS = ("bbox_head", "mask_head", "mask_iou_head")
_MASK_PARTS = ("mask_head", "mask_roi_extractor", "mask_iou_head")


def predicts_masks(cfg: Any) -> bool:
    """Whether the config's detector has a mask head."""
    return bool((cfg.model.get("roi_head") or cfg.model).get("mask_head"))


def set_classes(cfg: Any, classes: Sequence[str]) -> None:
    """Let all heads and data sets of a detector's config have these classes, in this order.

    Raises:
        ConfigError: if no head has a number of classes.
    """
    heads = list(_heads(cfg.model))
    if not heads:
        raise ConfigError(
            f"{cfg.filename}: no bbox_head of the model has num_classes, so it cannot be fitted to other classes"
        )
    for head in heads:
        head["num_classes"] = len(classes)
    for loader in LOADERS:
        for dataset in datasets(cfg.get(loader)):
            if tuple((dataset.get("metainfo") or {}).get("classes") or ()) != tuple(classes):
                # The palette of the set's own classes has as many colours as they are.
                dataset["metainfo"] = dict(classes=tuple(classes), palette=palette(len(classes)))


def leave_out_mask_head(cfg: Any) -> None:
    """Let a detector with a mask head find boxes only: Mask R-CNN becomes Faster R-CNN.

    Raises:
        ConfigError: if the detector cannot do without.
    """
    if not predicts_masks(cfg):
        return
    if not cfg.model.get("roi_head"):
        raise ConfigError(f"{cfg.filename}: a {cfg.model.type} cannot do without masks")
    cfg.model.roi_head.update({name: None for name in _MASK_PARTS if name in cfg.model.roi_head})


def load_no_masks(cfg: Any) -> None:
    """Let the data pipelines leave the masks of the annotation files alone."""
    for loader in LOADERS:
        for node in dictionaries_in(cfg.get(loader)):
            if str(node.get("type", "")).split(".")[-1] == "LoadAnnotations":
                node["with_mask"] = False


def palette(count: int) -> list[tuple[int, int, int]]:
    """So many colours (red, green, blue in 0..255), the same ones each time."""
    from mmdet.visualization import get_palette

    colours: list[tuple[int, int, int]] = get_palette("random", count)
    return [tuple(int(channel) for channel in colour) for colour in colours]  # type: ignore[misc]


def _heads(node: Any, inside: bool = False) -> Iterator[dict[str, Any]]:
    """The heads that have a number of classes; Cascade R-CNN has a list of them. The RPN's is none of the data's."""
    if isinstance(node, dict):
        if inside and "num_classes" in node:
            yield node
        for key, value in node.items():
            yield from _heads(value, inside or key in _HEADS)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _heads(value, inside)
