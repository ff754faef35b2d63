"""Faults of a data set in COCO's format, each by file and id, and the data set without what they concern.

Nothing here writes: the files that were read stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from revbifpn.datasets.coco_files import CocoSplit, Entry
from revbifpn.datasets.coco_masks import is_finite, mask_area, mask_fault

TOLERANCE = 1.0  # pixels that a box may reach outside its image: tools round in different ways
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: values with which a viewer, and OpenCV, exchange width and height


@dataclass(frozen=True)
class Fault:
    """Something wrong in an annotation file.

    Attributes:
        file: the annotation file.
        where: kind and id of the entry, such as ``"annotation 17"``.
        what: is wrong with it, as the end of a sentence.
        topic: what kind of fault it is, in the plural.
    """

    file: Path
    where: str
    what: str
    topic: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where} {self.what}"


def check_split(split: CocoSplit, masks: bool) -> tuple[CocoSplit, list[Fault]]:
    """Check a split by itself: images, categories, annotations.

    Sizes of images and areas of annotations that the file does not say are filled in, and annotations are numbered anew
    where their ids are no positive integers.

    Args:
        masks: whether every annotation needs a segmentation; otherwise those that are there are not looked at.

    Returns:
        The split without what is at fault (and without annotations of images and categories that are), and the faults.
    """
    faults: list[Fault] = []
    categories = _check_entries(split, "categories", "category", _CategoryFaults(), faults)
    images = _check_entries(split, "images", "image", _ImageFaults(split), faults)
    judge = _AnnotationFaults(split, categories, images, masks)
    annotations = _check_entries(split, "annotations", "annotation", judge, faults)
    if any(not isinstance(a["id"], int) or a["id"] <= 0 for a in annotations):
        # pycocotools' evaluation notes down the id of what a detection was matched to, and reads 0 as nothing.
        annotations = [a | {"id": number} for number, a in enumerate(annotations, 1)]
    return split.with_lists(images=images, annotations=annotations, categories=categories), faults


def fit_classes(split: CocoSplit, classes: Sequence[str], source: str) -> tuple[CocoSplit, list[Fault]]:
    """Check that a split has the classes of another source, in the same order: MMDetection numbers labels by it.

    Args:
        split: one whose categories are well-formed.
        classes: names in their order.
        source: where they come from, for messages.

    Returns:
        The split with these classes and no annotations of others, and the faults.
    """
    if split.classes == tuple(classes):
        return split, []
    ids = {c["name"]: c["id"] for c in split.content["categories"]}
    topic = f"differences from the classes of {source}"
    faults = [
        Fault(split.file, f"category {ids[name]}", f"({name!r}) is none of {source}", topic)
        for name in split.classes
        if name not in classes
    ]
    faults += [
        Fault(split.file, "list of categories", f"has no {name!r}, {source} has", topic) for name in classes if name not in ids
    ]
    if not faults:
        where = "list of categories"
        faults.append(Fault(split.file, where, f"has another order than that of {source} ({', '.join(classes)})", topic))
    free = _unused_ids(ids.values())
    categories = [{"id": ids[name] if name in ids else next(free), "name": name} for name in classes]
    known = {category["id"] for category in categories}
    annotations = [a for a in split.content["annotations"] if a["category_id"] in known]
    return split.with_lists(categories=categories, annotations=annotations), faults


def summary(faults: Sequence[Fault], most: int = 3) -> str:
    """The first faults of each kind in each file, a line for each, and how many more there are."""
    kinds = Counter((fault.file, fault.topic) for fault in faults)
    shown: Counter[tuple[Path, str]] = Counter()
    lines = []
    for fault in sorted(faults, key=lambda f: list(kinds).index((f.file, f.topic))):
        kind = fault.file, fault.topic
        shown[kind] += 1
        if shown[kind] <= most:
            lines.append(f"  {fault}")
        if shown[kind] == kinds[kind] > most:
            lines.append(f"  {fault.file}: {kinds[kind] - most} more {fault.topic}")
    return "\n".join(lines)


def _unused_ids(used: Iterable[Any]) -> Iterator[int]:
    taken = set(used)
    return (number for number in range(1, 1_000_000_000) if number not in taken)


def _check_entries(split: CocoSplit, key: str, kind: str, judge: Any, faults: list[Fault]) -> list[Entry]:
    """The entries of a list that are not at fault; ``judge(entry)`` gives topic and text of what is wrong, or None."""
    good: dict[Any, Entry] = {}
    entries = split.content[key]
    for place, entry in enumerate(tqdm(entries, desc=f"checking {split.name} {key}", leave=False, disable=None)):
        number = entry.get("id") if isinstance(entry, dict) else None
        if not _is_id(number):
            faults.append(
                Fault(split.file, f"{kind} at place {place}", "has no id (a whole number, or a text)", "entries without an id")
            )
            continue
        entry = dict(entry)  # what is filled in below is not for the content that was read
        wrong = (f"duplicate ids of {key}", "has the id of another one before it") if number in good else judge(entry)
        if wrong is None:
            good[number] = entry
        elif wrong != _WITH_ANOTHER:
            faults.append(Fault(split.file, f"{kind} {number}", wrong[1], wrong[0]))
    return list(good.values())


_Wrong = tuple[str, str] | None  # topic and text
_WITH_ANOTHER = ("", "")  # goes with an entry that is at fault


class _CategoryFaults:
    """Judges categories."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def __call__(self, category: Entry) -> _Wrong:
        name = category.get("name")
        if not isinstance(name, str) or not name:
            return "categories without a name", "has no name"
        if name in self.seen:
            return "duplicate names of categories", f"has the name of category {self.seen[name]}, {name!r}"
        self.seen[name] = category["id"]
        return None


class _ImageFaults:
    """Judges images, and fills in sizes."""

    def __init__(self, split: CocoSplit) -> None:
        self.folder = split.images
        named = [i for i in split.content["images"] if isinstance(i, dict) and _is_id(i.get("id"))]
        self.files = Counter(number for number, _ in {(i["id"], str(i.get("file_name"))) for i in named})

    def __call__(self, image: Entry) -> _Wrong:
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            return "images without a file name", "has no file_name"
        if self.files[image["id"]] > 1:
            return "duplicate ids of images", f"({name}) has the id of another image: whose annotations are whose is not known"
        path = self.folder / name
        if not path.is_file():
            return "missing images", f"is missing: {path} does not exist"
        try:
            size = _size_on_disk(path)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise
            return "images that cannot be read", f"cannot be read: {error}"
        width, height = image.setdefault("width", size[0]), image.setdefault("height", size[1])
        if (width, height) != size:
            return (
                "images of another size than the file says",
                f"is said to have {width} x {height} pixels, {path} has {size[0]} x {size[1]}",
            )
        return None


def _size_on_disk(path: Path) -> tuple[int, int]:
    """Width and height, as OpenCV loads the image: turned as its EXIF data say."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # only the header is read
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION) in _TURNED else (width, height)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


class _AnnotationFaults:
    """Judges annotations, and fills in areas. Those of images and categories that are at fault go without a word."""

    def __init__(self, split: CocoSplit, categories: Iterable[Entry], images: Iterable[Entry], masks: bool) -> None:
        self.categories = {category["id"] for category in categories}
        self.images = {image["id"]: image for image in images}
        self.masks = masks
        self.listed_images, self.listed_categories = _listed_ids(split, "images"), _listed_ids(split, "categories")

    def __call__(self, annotation: Entry) -> _Wrong:
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if not _is_id(image_id) or (image_id not in self.images and image_id not in self.listed_images):
            return "unknown image ids", f"has image_id {image_id!r}, which is no image's"
        if not _is_id(category_id) or (category_id not in self.categories and category_id not in self.listed_categories):
            return "unknown category ids", f"has category_id {category_id!r}, which is no category's"
        if image_id not in self.images or category_id not in self.categories:
            return _WITH_ANOTHER
        image = self.images[image_id]
        width, height = image["width"], image["height"]
        box: Any = annotation.get("bbox")
        if wrong := _box_fault(box, width, height):
            return wrong
        segmentation = annotation.get("segmentation")
        if self.masks and not segmentation:
            return "annotations without a segmentation", "has no segmentation, others have"
        if self.masks and (text := mask_fault(segmentation, height, width)):
            return "malformed segmentations", text
        if not is_finite(annotation.get("area")) or annotation["area"] <= 0:
            annotation["area"] = mask_area(segmentation, height, width) if self.masks else box[2] * box[3]
        return None


def _listed_ids(split: CocoSplit, key: str) -> set[Any]:
    return {e["id"] for e in split.content[key] if isinstance(e, dict) and _is_id(e.get("id"))}


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _box_fault(box: Any, width: int, height: int) -> _Wrong:
    if not isinstance(box, list) or len(box) != 4 or not all(is_finite(number) for number in box):
        return "malformed boxes", f"has bbox {box!r}, not [x, y, width, height] in finite numbers"
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return "boxes of no area", f"has a box of no area: bbox {box}"
    if min(x, y) < -TOLERANCE or x + w > width + TOLERANCE or y + h > height + TOLERANCE:
        return (
            "boxes outside the image",
            f"has a box outside its image of {width} x {height}: bbox {box} (x, y, width, height)",
        )
    return None
