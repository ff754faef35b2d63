"""The Fashion-MNIST converter, on small IDX files that the test makes."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from revbifpn.datasets.fashion_mnist import CLASSES, FILES, make_fashion_mnist, read_idx
from revbifpn.datasets.image_folders import class_folders

ROOT = Path(__file__).parents[2]


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """20 training and 10 test images of 28x28, every class in both."""
    folder = tmp_path / "source"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for (images, labels), count in zip(FILES.values(), (20, 10), strict=True):
        write_idx(folder / images, rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(folder / labels, np.arange(count, dtype=np.uint8)[::-1] % 10)
    return folder


def test_makes_an_image_folder_with_the_pixels_and_labels_of_the_files(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert make_fashion_mnist(source, out)
    for split, (images_name, labels_name) in FILES.items():
        images, labels = read_idx(source / images_name, 3), read_idx(source / labels_name, 1)
        assert class_folders(out / split) == dict.fromkeys(CLASSES, True)
        paths = sorted((out / split).rglob("*.png"), key=lambda path: path.name)
        assert len(paths) == len(images)
        for path, image, label in zip(paths, images, labels, strict=True):
            assert path.parent.name == CLASSES[label]
            assert np.array_equal(np.asarray(Image.open(path)), image)


def test_complete_folder_is_left_alone_and_half_written_one_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_fashion_mnist(source, out)
    assert not make_fashion_mnist(source, out)
    (tmp_path / "half.partial/train").mkdir(parents=True)
    (tmp_path / "half.partial/train/left.png").touch()
    assert make_fashion_mnist(source, tmp_path / "half")
    assert not (tmp_path / "half/train/left.png").exists()


def test_other_source_needs_force_and_foreign_folders_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_fashion_mnist(source, out)
    write_idx(source / FILES["val"][0], np.zeros((10, 28, 28), np.uint8))
    with pytest.raises(FileExistsError, match="made from other files; use --force"):
        make_fashion_mnist(source, out)
    assert make_fashion_mnist(source, out, force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious.txt").touch()
    with pytest.raises(FileExistsError, match="was not made by this tool"):
        make_fashion_mnist(source, tmp_path / "mine", force=True)


def spoil(source: Path, fault: str) -> str:
    """Do something to one of the source files; returns what the error must say."""
    path = source / FILES["train"][0]
    content = gzip.decompress(path.read_bytes())
    if fault == "missing":
        path.unlink()
        return r"has no train-images-idx3-ubyte.gz: expected .*package dataset-fashion-mnist"
    if fault == "truncated archive":
        path.write_bytes(path.read_bytes()[:-100])
        return r"train-images-idx3-ubyte.gz is damaged or truncated"
    if fault == "truncated":
        path.write_bytes(gzip.compress(content[:-10]))
        return r"train-images-idx3-ubyte.gz is truncated or damaged: 15670 bytes for shape \(20, 28, 28\)"
    if fault == "short header":
        path.write_bytes(gzip.compress(content[:9]))
        return r"train-images-idx3-ubyte.gz is truncated: 9 bytes"
    if fault == "wrong magic":
        path.write_bytes(gzip.compress(b"\x00\x00\x0d\x03" + content[4:]))
        return r"train-images-idx3-ubyte.gz is no IDX file .*begins with 00000d03, expected 00000803"
    if fault == "no gzip":
        path.write_bytes(content)
        return r"train-images-idx3-ubyte.gz is damaged or truncated"
    if fault == "counts":
        write_idx(source / FILES["train"][1], np.zeros(19, np.uint8))
        return r"train-images.* has 20 images, .*train-labels.* 19 labels"
    write_idx(source / FILES["train"][1], np.full(20, 10, np.uint8))
    return r"train-labels-idx1-ubyte.gz: label 10 of image 0 is out of range 0..9"


FAULTS = ("missing", "truncated archive", "truncated", "short header", "wrong magic", "no gzip", "counts", "label")


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_source_is_named_and_nothing_is_written(source: Path, tmp_path: Path, fault: str) -> None:
    message = spoil(source, fault)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_fashion_mnist(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_line(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tools/make_fashion_mnist.py", "--out", tmp_path / "out", "--source"]
    bad = subprocess.run([*command, tmp_path], capture_output=True, text=True, timeout=300)
    assert bad.returncode == 1
    assert "dataset-fashion-mnist" in bad.stderr
    assert "Traceback" not in bad.stderr
    assert subprocess.run([*command, source], timeout=300).returncode == 0
    assert (tmp_path / "out/source.json").is_file()
