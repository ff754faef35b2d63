"""Checks of image folders (``<root>/<class>/*.jpeg``) that cost a directory listing and come before anything else."""

from __future__ import annotations

import os
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions


class DataError(RuntimeError):
    """A data set cannot be used as it is."""


def check_class_folders(train: Path | None, val: Path | None, num_classes: int | None) -> None:
    """Check that image folders fit each other and the model.

    timm numbers the classes by the folders in which it finds images: an empty or missing one would shift all labels after it.

    Args:
        train, val: folders that hold a folder for each class; None if there is no such split.
        num_classes: of the model; None if it need not be that of the folders.

    Raises:
        DataError: naming the folders: class folders without images, classes that only one split has, or more or fewer
            classes than the model.
    """
    classes = {}
    for split, root in (("train", train), ("val", val)):
        if root is None:
            continue
        found = class_folders(root)
        empty = sorted(name for name, has_images in found.items() if not has_images)
        if not found:
            raise DataError(f"{root} has no class folders: expected {root}/<class>/<image>")
        if empty:
            raise DataError(
                f"{root} has class folders without images: {_some(empty)}. Fill them, or remove them from all splits; "
                "images are files that end in " + ", ".join(get_img_extensions())
            )
        classes[split] = set(found)
    if len(classes) == 2 and classes["train"] != classes["val"]:
        differences = [
            f"only {split} ({root}) has {_some(sorted(classes[split] - classes[other]))}"
            for split, other, root in (("train", "val", train), ("val", "train", val))
            if classes[split] - classes[other]
        ]
        raise DataError("the class folders of train and val differ, so their labels would too: " + "; ".join(differences))
    for split, names in classes.items():
        if num_classes is not None and len(names) != num_classes:
            raise DataError(
                f"{train if split == 'train' else val} has {len(names)} classes, the model {num_classes}: set "
                f"--cfg-options model.num_classes={len(names)}, or look whether class folders are missing"
            )


def class_folders(root: Path) -> dict[str, bool]:
    """Find the class folders (without folders in them, or with images): name -> whether it holds images."""
    extensions = get_img_extensions(as_set=True)
    result: dict[str, bool] = {}
    for folder, folders, files in os.walk(root, followlinks=True):
        if Path(folder) == root:
            continue
        has_images = any(os.path.splitext(name)[1].lower() in extensions for name in files)
        if has_images or not folders:
            name = os.path.basename(folder)
            result[name] = result.get(name, False) or has_images
    return result


def _some(items: list[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (f", ... ({len(items) - most} more)" if len(items) > most else "")
