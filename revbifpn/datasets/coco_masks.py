"""Is a segmentation of an annotation well-formed? Polygons, and run-length encodings in both of COCO's forms."""

from __future__ import annotations

from typing import Any

from pycocotools import mask as coco_mask

_FIRST, _MORE, _BITS = 48, 0x20, 5  # of a compressed count's characters: offset, "another one follows", payload


def mask_fault(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with a segmentation, as the end of a sentence about the annotation; None if nothing is.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]``, or ``{"size": [height, width], "counts": ...}``.
        height, width: of the image in pixels.
    """
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, height, width)
    if not isinstance(segmentation, list):
        return f"has a segmentation that is a {type(segmentation).__name__}, neither polygons nor RLE"
    for index, polygon in enumerate(segmentation):
        if not isinstance(polygon, list) or not all(is_finite(number) for number in polygon):
            return f"has a polygon (number {index}) that is no list of finite numbers"
        if len(polygon) % 2 or len(polygon) < 6:
            return f"has a polygon (number {index}) of {len(polygon)} numbers: x and y of three points at least are needed"
        # pycocotools walks along each edge pixel by pixel, wherever it leads.
        if any(abs(x) > 2 * width for x in polygon[::2]) or any(abs(y) > 2 * height for y in polygon[1::2]):
            return f"has a polygon (number {index}) that leads far outside its image of {width} x {height}"
    return _emptiness(segmentation, height, width)


def mask_area(segmentation: Any, height: int, width: int) -> int:
    """Pixels of a well-formed segmentation."""
    rle = coco_mask.frPyObjects(segmentation, height, width) if _needs_encoding(segmentation) else segmentation
    return int(coco_mask.area(coco_mask.merge(rle) if isinstance(rle, list) else rle))


def _needs_encoding(segmentation: Any) -> bool:
    return isinstance(segmentation, list) or isinstance(segmentation["counts"], list)


def is_finite(value: Any) -> bool:
    """Whether a value of a JSON file is a number that is neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _rle_fault(segmentation: dict[str, Any], height: int, width: int) -> str | None:
    if segmentation.get("size") != [height, width]:
        return f"has an RLE of size {segmentation.get('size')}, its image is [{height}, {width}] (height, width)"
    counts = segmentation.get("counts")
    # pycocotools trusts what it is given: a wrong string is read beyond its end.
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        return "has an RLE whose counts are no run lengths"
    if sum(runs) != height * width:
        return f"has an RLE whose run lengths add up to {sum(runs)} pixels, the image has {height * width}"
    return _emptiness(segmentation, height, width)


def _decompress(counts: str) -> list[int] | None:
    """Run lengths of a compressed RLE (pycocotools' ``rleFrString``); None if the string is none."""
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode():
        bits = code - _FIRST
        if not 0 <= bits < 2 * _MORE:
            return None
        value |= (bits & (_MORE - 1)) << shift
        shift += _BITS
        if bits & _MORE:
            continue
        if bits & 1 << (_BITS - 1):  # the sign
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))  # from the fourth on differences to the last but one
        value = shift = 0
    return None if shift else runs


def _emptiness(segmentation: Any, height: int, width: int) -> str | None:
    return None if mask_area(segmentation, height, width) else "has a mask that covers no pixel of its image"
