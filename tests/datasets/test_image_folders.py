"""Image folders that do not fit each other or the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from revbifpn.datasets.image_folders import DataError, check_class_folders, class_folders


def test_good_folders_pass(image_folder: Path) -> None:
    check_class_folders(image_folder / "train", image_folder / "val", 3)
    check_class_folders(None, image_folder / "val", 3)
    check_class_folders(image_folder / "train", image_folder / "val", None)
    assert class_folders(image_folder / "val") == {"blue": True, "green": True, "red": True}


def test_class_folder_without_images(own_folder: Path) -> None:
    for path in (own_folder / "val/green").iterdir():
        path.unlink()
    (own_folder / "val/green/notes.txt").touch()
    with pytest.raises(DataError, match=r"val has class folders without images: green\. Fill them, or remove them"):
        check_class_folders(own_folder / "train", own_folder / "val", 3)


def test_folders_of_train_and_val_that_differ(own_folder: Path) -> None:
    (own_folder / "val/green").rename(own_folder / "val/verde")
    with pytest.raises(DataError, match=r"differ.*only train \(.*train\) has green; only val \(.*val\) has verde"):
        check_class_folders(own_folder / "train", own_folder / "val", 3)
    shutil.rmtree(own_folder / "val/verde")
    with pytest.raises(DataError, match=r"only train .* has green$"):
        check_class_folders(own_folder / "train", own_folder / "val", 3)


def test_another_number_of_classes_than_the_model(image_folder: Path) -> None:
    with pytest.raises(DataError, match=r"train has 3 classes, the model 1000: set --cfg-options model.num_classes=3"):
        check_class_folders(image_folder / "train", image_folder / "val", 1000)


def test_no_class_folders_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class folders: expected .*/<class>/<image>"):
        check_class_folders(tmp_path, None, 3)
