"""Annotation files and images are found where they lie; what is no annotation file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from revbifpn.datasets.coco_files import read_split
from revbifpn.datasets.image_folders import DataError
from tests.datasets import coco


@pytest.mark.parametrize("annotations", ["{}.json", "annotations/{}.json", "annotations/instances_{}.json"])
@pytest.mark.parametrize("images", [".", "images", "val", "images/val"])
def test_usual_layouts_are_found(tmp_path: Path, annotations: str, images: str) -> None:
    written = coco.write(tmp_path / "elsewhere", "val", coco.content("val"))
    file, folder = tmp_path / "data" / annotations.format("val"), tmp_path / "data" / images
    for path in (file.parent, folder):
        path.mkdir(parents=True, exist_ok=True)
    written.rename(file)
    for path in (tmp_path / "elsewhere/images").iterdir():
        path.rename(folder / path.name)
    split = read_split(tmp_path / "data", "val")
    assert split.file == file
    assert split.images.resolve() == folder.resolve()
    assert split.classes == ("cat", "dog")
    assert split.has_masks


def test_other_layouts_are_named(tmp_path: Path) -> None:
    coco.write(tmp_path, "train", coco.content("train", masks=False)).rename(tmp_path / "labels.json")
    (tmp_path / "images").rename(tmp_path / "photos")
    split = read_split(tmp_path, "train", Path("labels.json"), tmp_path / "photos")
    assert (split.file, split.images) == (tmp_path / "labels.json", tmp_path / "photos")
    assert not split.has_masks


def test_what_is_not_there_is_named_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"data folder not found: {tmp_path}/nowhere"):
        read_split(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/train.json or .*Expected .* --train-annotations FILE"):
        read_split(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=rf"annotation file not found: {tmp_path}/x.json\. "):
        read_split(tmp_path, "train", Path("x.json"))
    coco.write(tmp_path, "train", coco.content("train"))
    with pytest.raises(FileNotFoundError, match=f"folder of images not found: {tmp_path}/photos"):
        read_split(tmp_path, "train", images=Path("photos"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "train.json is no JSON file: Expecting property name"),
        ("\xff", "train.json is no JSON file: "),
        ("[1]", "not in COCO's format: it holds a list, not an object"),
        ('{"images": [], "annotations": {}}', "it has no list of annotations, no list of categories"),
        ('{"images": [], "annotations": [], "categories": []}', "train.json lists no images and no categories"),
    ],
)
def test_no_annotation_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DataError, match=message):
        read_split(tmp_path, "train")


def test_copies_do_not_touch_the_file_that_was_read(tmp_path: Path) -> None:
    file = coco.write(tmp_path, "train", coco.content("train"))
    before = file.read_bytes()
    split = read_split(tmp_path, "train").with_lists(annotations=[])
    copy = split.written(tmp_path / "work")
    assert copy.file == tmp_path / "work/train.json"
    assert json.loads(copy.file.read_text()) == coco.content("train") | {"annotations": []}
    assert file.read_bytes() == before
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["train.json"]
