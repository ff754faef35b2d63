"""Are the data sets that a config names on disk, and do they fit its model? Checked before minutes go into anything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timm.data.dataset_factory import _search_split

from revbifpn.datasets.image_folders import check_class_folders

_CLASSIFICATION = ("ClassificationDataset", "IterableClassificationDataset")


class ConfigError(ValueError):
    """Options that do not go together."""


def is_classification(cfg: Any) -> bool:
    """Whether a config is one of image classification."""
    return bool((cfg.get("model") or {}).get("type") == "ImageClassifier")


def set_data_root(cfg: Any, root: str) -> None:
    """Let all data sets of a classification config lie in ``root``.

    Raises:
        ConfigError: for a detection config.
    """
    if not is_classification(cfg):
        raise ConfigError(
            "--data is for classification; detection's data set has --cfg-options train_dataloader.dataset.data_root"
        )
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for dataset in _datasets(cfg.get(loader)):
            dataset["root"] = root


def check_data(cfg: Any, *loaders: str) -> None:
    """Check that the data sets of the named dataloaders are on disk.

    Image folders are compared with each other and with the model (:func:`.check_class_folders`), and the classification data
    sets' ``num_classes`` is set to the model's.

    Args:
        cfg: MMEngine config.
        loaders: keys of ``cfg``, such as ``"train_dataloader"``.

    Raises:
        FileNotFoundError: naming the missing folder or annotation file and the layout that is expected.
        DataError: if image folders do not fit each other or the model.
    """
    folders: dict[bool, Path] = {}  # training? -> class folders
    class_map = False
    for loader in loaders:
        for dataset in _datasets(cfg.get(loader)):
            if dataset.get("type") not in _CLASSIFICATION:
                _check_coco(dataset, loader)
                continue
            dataset["num_classes"] = cfg.model.num_classes
            if not dataset.get("name"):
                root = _check_classification(dataset, loader)
                class_map |= "class_map" in (dataset.get("options") or {})
                if root.is_dir():
                    folders[bool(dataset.get("training"))] = root
    if folders:
        check_class_folders(folders.get(True), folders.get(False), None if class_map else cfg.model.num_classes)


def _check_classification(dataset: dict[str, Any], loader: str) -> Path:
    """The folder of a split, or the tar file."""
    root, split = Path(dataset["root"]), dataset["split"]
    found = Path(_search_split(str(root), split)) if root.is_dir() else root
    if not found.exists() or (root.is_dir() and split and found == root):
        raise FileNotFoundError(
            f"data set of {loader} not found: {root / split if root.is_dir() else root} does not exist. Expected "
            f"{root}/train/<class>/<image> and {root}/val/<class>/<image>. Link your copy there, or name another place with "
            "--data FOLDER"
        )
    return found


def _check_coco(dataset: dict[str, Any], loader: str) -> None:
    root = Path(dataset.get("data_root") or ".")
    wanted = [root, *(root / path for path in _paths(dataset))]
    missing = [path for path in wanted if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"data set of {loader} not found: {missing[0]} does not exist. Expected MMDetection's COCO layout: "
            + ", ".join(str(path) for path in wanted[1:])
            + ". Link your copy there, or set another place with --cfg-options "
            f"{loader}.dataset.data_root=FOLDER"
        )


def _paths(dataset: dict[str, Any]) -> list[str]:
    prefix: dict[str, Any] = dataset.get("data_prefix") or {}
    return [path for path in (dataset.get("ann_file"), *prefix.values()) if path]


def _datasets(node: Any) -> Iterator[dict[str, Any]]:
    """All data set configs inside a dataloader config, wrapped ones too."""
    if isinstance(node, dict):
        if "ann_file" in node or node.get("type") in _CLASSIFICATION:
            yield node
        for value in node.values():
            yield from _datasets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _datasets(value)
