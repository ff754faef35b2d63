"""A small data set in COCO's format that tests may spoil."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (60, 40)  # width, height


def content(split: str, masks: bool = True) -> dict[str, Any]:
    """Two images, three annotations of two classes; ids as no other split has them."""
    first = 10 if split == "train" else 20
    boxes = [(0, 5, 20, 10), (30, 10, 25, 25), (10, 10, 30, 20)]
    annotations = [
        {
            "id": first + index,
            "image_id": first + index // 2,
            "category_id": 3 + 4 * (index % 2),
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]] if masks else [],
        }
        for index, box in enumerate(boxes)
        for x, y, w, h in [box]
    ]
    images = [{"id": first + i, "file_name": f"{split}{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]}


def write(folder: Path, split: str, data: Any) -> Path:
    """Write an annotation file, and its images, those whose file names are sound, into ``folder/images``."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(2):
        Image.new("RGB", SIZE, (90, 60 * index, 0)).save(folder / "images" / f"{split}{index}.png")
    (folder / f"{split}.json").write_text(json.dumps(data))
    return folder / f"{split}.json"
