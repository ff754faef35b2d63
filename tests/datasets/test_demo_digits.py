"""The demo's semi-synthetic data set: exact, reproducible, nothing in both splits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from revbifpn.datasets.demo_digits import PHOTOS, DemoDataParameters, _split_digits, load_photos, make_demo_data

ROOT = Path(__file__).parents[2]
SMALL = DemoDataParameters(num_train=6, num_val=4, image_size=96)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "data"
    assert make_demo_data(folder, SMALL)
    return folder


def test_the_same_parameters_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    make_demo_data(tmp_path / "again", SMALL)
    assert content(tmp_path / "again") == content(data)
    make_demo_data(tmp_path / "other", DemoDataParameters(seed=1, num_train=6, num_val=4, image_size=96))
    assert content(tmp_path / "other") != content(data)


def test_a_complete_folder_is_left_alone_and_a_half_written_one_replaced(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make_demo_data(folder, SMALL)
    assert not make_demo_data(folder, SMALL)
    next((folder / "val").iterdir()).unlink()
    assert make_demo_data(folder, SMALL)
    assert content(folder) == content(data)


def test_no_photograph_and_no_digit_is_in_both_splits() -> None:
    train, val = load_photos("train"), load_photos("val")
    assert train
    assert val
    assert not set(train) & set(val)
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= set(PHOTOS["train"])  # one scene
    digits = _split_digits(DemoDataParameters())
    for label in (0, 1, 2, 4, 7):
        ours = {image.tobytes() for image in digits["train"][label]}
        assert len(ours) > 100
        assert not ours & {image.tobytes() for image in digits["val"][label]}


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_are_exact_and_disjoint(data: Path, split: str) -> None:
    coco = COCO(data / f"annotations/{split}.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["0", "1", "2", "4", "7"]
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(data / split / image["file_name"]) as picture:
            assert picture.size == (96, 96)
            assert picture.mode == "RGB"
        covered = np.zeros((96, 96), dtype=int)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert annotations
        for annotation in annotations:
            mask = coco.annToMask(annotation)
            rows, columns = np.nonzero(mask)
            left, top = columns.min(), rows.min()
            assert annotation["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
            assert annotation["area"] == mask.sum()
            covered += mask
        assert covered.max() == 1


def test_it_calls_itself_semi_synthetic(data: Path) -> None:
    assert json.loads((data / "annotations/val.json").read_text())["info"]["description"].startswith("semi-synthetic")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 100}, "image_size must be a multiple of 32 and 64 at least, got 100; 96 or 128 would do"),
        ({"num_train": 0}, r"num_train must be in 1..100000 images, got 0"),
        ({"classes": (1, 1)}, r"classes must be different digits of 0..9, got \[1, 1\]"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_wrong_parameters_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemoDataParameters(**values)  # type: ignore[arg-type]


def test_other_peoples_files_and_other_parameters_are_not_overwritten(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds files of something else \(thesis.tex\)"):
        make_demo_data(tmp_path, SMALL)
    before = content(data)
    with pytest.raises(FileExistsError, match="was made with other parameters.*--force"):
        make_demo_data(data, DemoDataParameters(seed=3, num_train=6, num_val=4, image_size=96))
    assert content(data) == before


def test_tool_says_what_was_wrong(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tools/make_demo_data.py", "--out", tmp_path / "x", "--image-size", "70"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "multiple of 32" in done.stderr
    assert "Traceback" not in done.stderr
