"""Each fault of an annotation file is named by file and id, what it concerns is left out, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from revbifpn.datasets.coco_checks import Fault, check_split, fit_classes, summary
from revbifpn.datasets.coco_files import CocoSplit, read_split
from tests.datasets import coco

Content = dict[str, Any]


def checked(tmp_path: Path, spoil: Callable[[Content], object], masks: bool = True) -> tuple[CocoSplit, list[Fault]]:
    """The check of a sound set that ``spoil`` has changed."""
    content = coco.content("train")
    spoil(content)
    coco.write(tmp_path, "train", content)
    split = read_split(tmp_path, "train")
    before = copy.deepcopy(split.content)
    result = check_split(split, masks)
    assert split.content == before
    return result


def test_a_sound_set_has_no_faults_and_stays_as_it_is(tmp_path: Path) -> None:
    split, faults = checked(tmp_path, lambda content: None)
    assert not faults
    assert split.content == coco.content("train")


def annotation(**changes: Any) -> Callable[[Content], object]:
    """Change annotation 10, or take keys out of it (None)."""

    def spoil(content: Content) -> None:
        content["annotations"][0].update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del content["annotations"][0][key]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (annotation(image_id=99), "annotation 10 has image_id 99, which is no image's"),
        (annotation(image_id=[10]), "annotation 10 has image_id [10], which is no image's"),
        (annotation(category_id=4), "annotation 10 has category_id 4, which is no category's"),
        (annotation(category_id=None), "annotation 10 has category_id None, which is no category's"),
        (annotation(bbox=None), "annotation 10 has bbox None, not [x, y, width, height] in finite numbers"),
        (annotation(bbox=[1, 2, 3]), "annotation 10 has bbox [1, 2, 3], not [x, y, width, height]"),
        (annotation(bbox=[1, 2, float("nan"), 4]), "annotation 10 has bbox [1, 2, nan, 4], not [x, y, width, height]"),
        (annotation(bbox=[1, 2, 0, 4]), "annotation 10 has a box of no area: bbox [1, 2, 0, 4]"),
        (annotation(bbox=[9, 9, 5, -2]), "annotation 10 has a box of no area: bbox [9, 9, 5, -2]"),
        (annotation(bbox=[30, 10, 55, 35]), "annotation 10 has a box outside its image of 60 x 40: bbox [30, 10, 55, 35]"),
        (annotation(bbox=[-2, 10, 5, 5]), "annotation 10 has a box outside its image of 60 x 40"),
        (annotation(segmentation=[]), "annotation 10 has no segmentation, others have"),
        (annotation(segmentation=[[1, 2, 3, 4]]), "annotation 10 has a polygon (number 0) of 4 numbers"),
        (annotation(id=None), "annotation at place 0 has no id"),
        (annotation(id=1.5), "annotation at place 0 has no id"),
        (annotation(id=11), "annotation 11 has the id of another one before it"),
    ],
)
def test_an_annotation_at_fault_goes_alone(tmp_path: Path, spoil: Callable[[Content], object], said: str) -> None:
    split, (fault,) = checked(tmp_path, spoil)
    assert str(fault).startswith(f"{tmp_path}/train.json: {said}")
    assert [a["id"] for a in split.content["annotations"]] == [11, 12]
    assert split.content["images"] == coco.content("train")["images"]


def test_what_is_no_entry_at_all_is_named_by_its_place(tmp_path: Path) -> None:
    split, faults = checked(tmp_path, lambda content: content["annotations"].insert(1, "text"))
    assert [str(fault) for fault in faults] == [
        f"{tmp_path}/train.json: annotation at place 1 has no id (a whole number, or a text)"
    ]
    assert len(split.content["annotations"]) == 3


def test_masks_that_are_not_wanted_are_not_looked_at(tmp_path: Path) -> None:
    split, faults = checked(tmp_path, annotation(segmentation=[[1, 2, 3, 4]]), masks=False)
    assert not faults
    assert len(split.content["annotations"]) == 3


def test_a_box_may_reach_a_pixel_over_the_edge(tmp_path: Path) -> None:
    assert not checked(tmp_path, annotation(bbox=[-1, -1, 62, 42]))[1]


def image(**changes: Any) -> Callable[[Content], object]:
    """Change image 10, which has annotations 10 and 11, or take keys out of it (None)."""

    def spoil(content: Content) -> None:
        content["images"][0].update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del content["images"][0][key]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (image(file_name="nowhere.png"), "image 10 is missing: {folder}/images/nowhere.png does not exist"),
        (image(file_name=None), "image 10 has no file_name"),
        (image(file_name="broken.png"), "image 10 cannot be read: cannot identify image file"),
        (image(width=61), "image 10 is said to have 61 x 40 pixels, {folder}/images/train0.png has 60 x 40"),
        (image(width=40, height=60), "image 10 is said to have 40 x 60 pixels"),
    ],
)
def test_an_image_at_fault_goes_with_its_annotations(tmp_path: Path, spoil: Callable[[Content], object], said: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/broken.png").write_bytes(b"broken")
    split, (fault,) = checked(tmp_path, spoil)
    assert str(fault).startswith(f"{tmp_path}/train.json: {said.format(folder=tmp_path)}")
    assert [i["id"] for i in split.content["images"]] == [11]
    assert [a["id"] for a in split.content["annotations"]] == [12]


def test_images_that_share_an_id(tmp_path: Path) -> None:
    """The same one twice is listed once; of two different ones nobody knows whose the annotations are."""
    split, (fault,) = checked(tmp_path, lambda content: content["images"].append(dict(content["images"][0])))
    assert str(fault) == f"{tmp_path}/train.json: image 10 has the id of another one before it"
    assert split.content == coco.content("train")
    split, faults = checked(tmp_path, lambda content: content["images"][1].update(id=10))
    assert [fault.where for fault in faults] == ["image 10", "image 10", "annotation 12"]
    assert "(train1.png) has the id of another image: whose annotations are whose is not known" in str(faults[1])
    assert split.content["images"] == split.content["annotations"] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": 3}, "category 3 has the id of another one before it"),
        ({"name": "cat"}, "category 7 has the name of category 3, 'cat'"),
        ({"name": ""}, "category 7 has no name"),
    ],
)
def test_a_category_at_fault_goes_with_its_annotations(tmp_path: Path, changes: Content, said: str) -> None:
    split, faults = checked(tmp_path, lambda content: content["categories"][1].update(changes))
    assert str(faults[0]) == f"{tmp_path}/train.json: {said}"
    assert split.classes == ("cat",)
    assert {a["category_id"] for a in split.content["annotations"]} == {3}


def test_an_image_is_as_large_as_it_is_loaded(tmp_path: Path) -> None:
    """OpenCV turns it as its EXIF data say, so a phone's upright photograph has its sides exchanged."""
    import cv2

    content = coco.content("train")
    content["images"][0].update(file_name="turned.jpg", width=40, height=60)
    content["annotations"] = content["annotations"][2:]
    coco.write(tmp_path, "train", content)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", coco.SIZE).save(tmp_path / "images/turned.jpg", exif=exif)
    assert cv2.imread(str(tmp_path / "images/turned.jpg")).shape == (60, 40, 3)
    assert not check_split(read_split(tmp_path, "train"), masks=True)[1]


def test_what_the_file_leaves_out_is_filled_in(tmp_path: Path) -> None:
    """MMDetection stops at a missing size or area."""

    def spoil(content: Content) -> None:
        del content["images"][0]["width"], content["images"][0]["height"]
        del content["annotations"][0]["area"]
        content["annotations"][1]["area"] = 0

    split, faults = checked(tmp_path, spoil)
    assert not faults
    assert split.content == coco.content("train")
    split, _ = checked(tmp_path, spoil, masks=False)
    assert [a["area"] for a in split.content["annotations"]] == [200, 625, 600]


@pytest.mark.parametrize("number", [0, "ten"])
def test_annotations_are_numbered_as_pycocotools_needs_it(tmp_path: Path, number: int | str) -> None:
    """It takes 0 for "matched to nothing", and puts ids into an array of numbers."""
    split, faults = checked(tmp_path, annotation(id=number))
    assert not faults
    assert [a["id"] for a in split.content["annotations"]] == [1, 2, 3]


def test_classes_of_another_source(tmp_path: Path) -> None:
    coco.write(tmp_path, "val", coco.content("val"))
    split = read_split(tmp_path, "val")
    assert fit_classes(split, ("cat", "dog"), "train.json") == (split, [])

    turned, (fault,) = fit_classes(split, ("dog", "cat"), "train.json")
    assert str(fault) == f"{tmp_path}/val.json: list of categories has another order than that of train.json (dog, cat)"
    assert turned.content["categories"] == [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    assert turned.content["annotations"] == split.content["annotations"]

    other, faults = fit_classes(split, ("horse", "dog"), "train.json")
    assert [str(fault) for fault in faults] == [
        f"{tmp_path}/val.json: category 3 ('cat') is none of train.json",
        f"{tmp_path}/val.json: list of categories has no 'horse', train.json has",
    ]
    assert other.content["categories"] == [{"id": 1, "name": "horse"}, {"id": 7, "name": "dog"}]
    assert [a["id"] for a in other.content["annotations"]] == [21]


def test_the_summary_has_the_first_of_each_kind(tmp_path: Path) -> None:
    def spoil(content: Content) -> None:
        for number in range(5):
            content["annotations"].append(content["annotations"][0] | {"id": 50 + number, "category_id": 9})
        content["annotations"].append(content["annotations"][0] | {"id": 60, "bbox": [1, 1, 0, 1]})
        content["annotations"].append(content["annotations"][0] | {"id": 61, "category_id": 9})

    _, faults = checked(tmp_path, spoil)
    file = f"  {tmp_path}/train.json"
    assert summary(faults, most=2).splitlines() == [
        f"{file}: annotation 50 has category_id 9, which is no category's",
        f"{file}: annotation 51 has category_id 9, which is no category's",
        f"{file}: 4 more unknown category ids",
        f"{file}: annotation 60 has a box of no area: bbox [1, 1, 0, 1]",
    ]
