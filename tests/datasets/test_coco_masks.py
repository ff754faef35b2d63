"""Polygons and run-length encodings: what pycocotools writes passes, what it would choke on or misread is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from revbifpn.datasets.coco_masks import mask_area, mask_fault

HEIGHT, WIDTH = 40, 60


def random_rle(seed: int, share: float) -> dict[str, Any]:
    pixels = (np.random.default_rng(seed).random((HEIGHT, WIDTH)) < share).astype(np.uint8)
    pixels[20, 30] = 1
    rle = coco_mask.encode(np.asfortranarray(pixels))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode(), "pixels": pixels}


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_what_pycocotools_encodes_is_sound_in_both_forms(seed: int, share: float) -> None:
    rle = random_rle(seed, share)
    pixels = rle.pop("pixels")
    assert mask_fault(rle, HEIGHT, WIDTH) is None
    assert mask_area(rle, HEIGHT, WIDTH) == pixels.sum()
    flat = np.concatenate([[0], pixels.T.ravel(), [2]])  # columns first, beginning with zeros
    changes = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], changes])) if flat[1] == 0 else np.concatenate([[0], np.diff(changes)])
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": [int(run) for run in runs]}
    assert mask_fault(uncompressed, HEIGHT, WIDTH) is None
    assert mask_area(uncompressed, HEIGHT, WIDTH) == pixels.sum()


def test_polygons() -> None:
    square = [10, 10, 20, 10, 20, 20, 10, 20]
    assert mask_fault([square, [30.5, 5, 40, 5, 40, 9.5]], HEIGHT, WIDTH) is None
    assert mask_area([square], HEIGHT, WIDTH) == 100
    assert mask_fault([[-1, 0, WIDTH + 1, 0, WIDTH + 1, HEIGHT + 1]], HEIGHT, WIDTH) is None  # a little over the edge


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("polygon", "has a segmentation that is a str, neither polygons nor RLE"),
        ([10, 10, 20, 10, 20, 20], "has a polygon (number 0) that is no list of finite numbers"),
        ([[10, 10, 20, 10, 20, float("nan")]], "has a polygon (number 0) that is no list of finite numbers"),
        ([[10, 10, 20, 10, 20, 20], [1, 2, 3, 4, 5, 6, 7]], "has a polygon (number 1) of 7 numbers: x and y of three points"),
        ([[10, 10, 20, 10]], "has a polygon (number 0) of 4 numbers"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "has a polygon (number 0) that leads far outside its image of 60 x 40"),
        ([[10, 10, 20, 20, 30, 30]], "has a mask that covers no pixel of its image"),
        ([[70, 5, 90, 5, 90, 25]], "has a mask that covers no pixel of its image"),
        ({"size": [60, 40], "counts": [2400]}, "has an RLE of size [60, 40], its image is [40, 60] (height, width)"),
        ({"counts": [2400]}, "has an RLE of size None"),
        ({"size": [40, 60]}, "has an RLE whose counts are no run lengths"),
        ({"size": [40, 60], "counts": [2500, -100]}, "has an RLE whose counts are no run lengths"),
        ({"size": [40, 60], "counts": [1.5]}, "has an RLE whose counts are no run lengths"),
        ({"size": [40, 60], "counts": [100, 5]}, "has an RLE whose run lengths add up to 105 pixels, the image has 2400"),
        ({"size": [40, 60], "counts": [2400]}, "has a mask that covers no pixel of its image"),
        ({"size": [40, 60], "counts": ""}, "has an RLE whose run lengths add up to 0 pixels"),
        ({"size": [40, 60], "counts": "ÿ~"}, "has an RLE whose counts are no run lengths"),
        ({"size": [40, 60], "counts": "01P"}, "has an RLE whose counts are no run lengths"),  # ends within a number
    ],
)
def test_what_is_malformed_is_named(segmentation: Any, message: str) -> None:
    assert message in str(mask_fault(segmentation, HEIGHT, WIDTH))


@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_string_never_passes_for_the_mask_it_was(seed: int) -> None:
    """One character less, or more, changes how many pixels there are, or cuts a number in two."""
    rle = random_rle(seed, 0.3)
    for counts in (rle["counts"][:-1], rle["counts"] + "5"):
        assert mask_fault({"size": rle["size"], "counts": counts}, HEIGHT, WIDTH)
