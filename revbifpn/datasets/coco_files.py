"""Annotation files in COCO's format: finding them in a folder, reading them, writing copies.

Files are read as plain JSON: pycocotools' ``COCO`` indexes by id and stops at the first missing key, so faults of a file
(:mod:`revbifpn.datasets.coco_checks`) cannot be seen through it. What it means by a mask is asked of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from revbifpn.datasets.image_folders import DataError

Entry = dict[str, Any]

#: Where a split's annotations and images are looked for in its folder, in this order; an empty name is the folder itself.
ANNOTATIONS = ("{split}.json", "annotations/{split}.json", "annotations/instances_{split}.json")
IMAGES = ("", "images", "{split}", "images/{split}")
_LISTS = ("images", "annotations", "categories")
_PROBES = 50  # images that are looked for in each folder


@dataclass(frozen=True)
class CocoSplit:
    """An annotation file and its images.

    Attributes:
        name: ``"train"`` or ``"val"``.
        file: the annotation file.
        images: folder that the images' ``file_name`` is relative to.
        content: of the file: ``images``, ``annotations`` and ``categories`` are lists.
    """

    name: str
    file: Path
    images: Path
    content: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the categories, in the file's order, which is that of MMDetection's labels."""
        return tuple(category["name"] for category in self.content["categories"])

    @property
    def has_masks(self) -> bool:
        """Whether any annotation has a segmentation."""
        return any(isinstance(a, dict) and a.get("segmentation") for a in self.content["annotations"])

    def with_lists(self, **lists: Sequence[Entry]) -> CocoSplit:
        """The same split with other ``images``, ``annotations`` or ``categories``."""
        return replace(self, content=self.content | {name: list(entries) for name, entries in lists.items()})

    def written(self, folder: Path) -> CocoSplit:
        """Write the content as ``folder/<split>.json``; the same split with that file."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{self.name}.json"
        draft = folder / f".{os.getpid()}-{target.name}"  # of several processes, each may write the same content
        draft.write_text(json.dumps(self.content))
        draft.replace(target)
        return replace(self, file=target)


def read_split(root: Path, name: str, annotations: Path | None = None, images: Path | None = None) -> CocoSplit:
    """Find a split's annotation file and the folder of its images, and read the file.

    Args:
        root: the data set's folder.
        name: ``"train"`` or ``"val"``.
        annotations: the file, relative to ``root`` or not; None looks in the usual places (:data:`ANNOTATIONS`).
        images: the folder, relative to ``root`` or not; None takes the usual place (:data:`IMAGES`) that holds most images.

    Raises:
        FileNotFoundError: naming what is missing and the layout that is expected.
        DataError: if the file is not in COCO's format at all.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data folder not found: {root}")
    candidates = [root / (annotations or "")] if annotations else [root / place.format(split=name) for place in ANNOTATIONS]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        places = " or ".join(str(path) for path in candidates)
        raise FileNotFoundError(
            f"annotation file not found: {places}. Expected {root}/train.json and {root}/val.json in COCO's format; name "
            "others with --train-annotations FILE and --val-annotations FILE"
        )
    content = _read(file)
    if images is not None:
        folder = root / images
        if not folder.is_dir():
            raise FileNotFoundError(f"folder of images not found: {folder}")
    else:
        folder = _find_images(content, [root / place.format(split=name) for place in IMAGES])
    return CocoSplit(name, file, folder, content)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, no text, or brackets without end
        raise DataError(f"{file} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is not in COCO's format: it holds a {type(content).__name__}, not an object")
    if wrong := [name for name in _LISTS if not isinstance(content.get(name), list)]:
        raise DataError(f"{file} is not in COCO's format: it has no list of {', no list of '.join(wrong)}")
    if empty := [name for name in ("images", "categories") if not content[name]]:
        raise DataError(f"{file} lists no {' and no '.join(empty)}")
    return content


def _find_images(content: dict[str, Any], folders: list[Path]) -> Path:
    names = [image["file_name"] for image in content["images"][:_PROBES] if isinstance(_get(image, "file_name"), str)]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names))


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None
