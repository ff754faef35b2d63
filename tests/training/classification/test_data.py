"""Samples, reproducible augmentation, and images that cannot be decoded."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from revbifpn.training.classification import (
    ClassificationDataset,
    DataError,
    ImageError,
    IterableClassificationDataset,
    SeededSampler,
)
from revbifpn.training.classification.data import SKIPPED, DatasetEpochHook
from tests.image_folders import CLASSES, NUM_TRAIN, NUM_VAL

SIZE = 32


def dataset(root: Path, split: str = "train", **options: Any) -> ClassificationDataset:
    options = {"num_classes": 3, "training": split == "train", "transform": dict(input_size=SIZE)} | options
    return ClassificationDataset(str(root), split, **options)


def test_samples_of_an_image_folder(image_folder: Path) -> None:
    data = dataset(image_folder, "val")
    assert len(data) == len(CLASSES) * NUM_VAL
    assert data.metainfo["classes"] == tuple(CLASSES)
    for index in range(len(data)):
        sample = data[index]
        assert sample["inputs"].shape == (3, SIZE, SIZE)
        assert sample["inputs"].dtype == torch.uint8
        assert (sample["labels"], sample["indices"]) == (index // NUM_VAL, index)
        mean = sample["inputs"].float().mean((1, 2))
        assert mean.argmax() == np.argmax(list(CLASSES.values())[sample["labels"]])


def test_tar_files_and_torchvision_folders_are_read_too(image_folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for path in sorted((image_folder / "train").rglob("*.png")):
            tar.add(path, path.relative_to(image_folder / "train"))
    folder = dataset(image_folder, transform=dict(input_size=SIZE, is_training=False))
    tar_data = dataset(tmp_path / "train.tar", transform=dict(input_size=SIZE, is_training=False))
    torch_data = dataset(image_folder, name="torch/image_folder", transform=dict(input_size=SIZE, is_training=False))
    assert len(folder) == len(tar_data) == len(torch_data) == len(CLASSES) * NUM_TRAIN
    for index in range(len(folder)):
        for other in (tar_data, torch_data):
            assert other[index]["labels"] == folder[index]["labels"]
            assert torch.equal(other[index]["inputs"], folder[index]["inputs"])


def batches(data: ClassificationDataset, epoch: int, workers: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    sampler = SeededSampler(data, shuffle=True, seed=5)
    sampler.set_epoch(epoch)
    loaded = list(DataLoader(data, batch_size=5, sampler=sampler, num_workers=workers))
    return torch.cat([batch["inputs"] for batch in loaded]), torch.cat([batch["indices"] for batch in loaded])


def test_augmentation_depends_on_seed_epoch_and_image_alone(image_folder: Path) -> None:
    """So neither the number of workers nor a resumption changes it; and it moves no global random state."""
    data = dataset(image_folder, transform=dict(input_size=SIZE, auto_augment="rand-m9-mstd0.5", vflip=0.5))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert torch.equal(data[3, 17]["inputs"], data[3, 17]["inputs"])
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])

    pixels, indices = batches(data, epoch=0)
    random.seed(99)
    again, same = batches(data, epoch=0, workers=2)
    assert torch.equal(same, indices)
    assert torch.equal(again, pixels)
    later, others = batches(data, epoch=1)
    assert not torch.equal(others, indices)
    by_image = lambda pixels, indices: pixels[indices.argsort()]  # noqa: E731
    assert all((a != b).any() for a, b in zip(by_image(pixels, indices), by_image(later, others), strict=True))


@pytest.fixture
def broken(own_folder: Path) -> Path:
    """A folder whose second green images are broken: one truncated, one no image."""
    good = (own_folder / "train/green/1.png").read_bytes()
    (own_folder / "train/green/1.png").write_bytes(good[: len(good) // 2])
    (own_folder / "val/green/1.png").write_text("this is no image")
    return own_folder


@pytest.mark.parametrize("split", ["train", "val"])
def test_image_that_cannot_be_decoded_stops_by_name(broken: Path, split: str) -> None:
    data = dataset(broken, split)
    with pytest.raises(ImageError, match=rf"{split}/green/1.png \(index \d+\) cannot be decoded .*Repair or remove it"):
        batches(data, 0)
    with pytest.raises(ImageError, match=rf"{split}/green/1.png"):
        batches(data, 0, workers=1)  # the name survives the way out of a worker


def test_skipping_in_training_takes_the_next_image_and_names_it_once(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("revbifpn.training.classification.data.print_log", lambda message, **_: said.append(message))
    data = dataset(broken, on_error="skip")
    bad = NUM_TRAIN + 1
    for _ in range(2):
        assert [data[bad][key] for key in ("labels", "indices")] == [1, bad + 1]
    assert len(said) == 1
    assert f"train/green/1.png (index {bad}) cannot be decoded" in said[0]
    assert [data[i]["indices"] for i in range(len(data)) if i != bad] == [i for i in range(len(data)) if i != bad]


def test_skipping_in_validation_leaves_the_image_out(broken: Path) -> None:
    data = dataset(broken, "val", on_error="skip")
    samples = [data[i] for i in range(len(data))]
    bad = NUM_VAL + 1
    assert [s["labels"] for s in samples] == [SKIPPED if i == bad else i // NUM_VAL for i in range(len(data))]
    assert [s["indices"] for s in samples] == list(range(len(data)))


def test_many_broken_images_in_a_row_stop_even_when_skipping(own_folder: Path) -> None:
    for path in (own_folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"11 images in a row cannot be decoded, the last: image .*\.png"):
        dataset(own_folder, on_error="skip")[0]


def test_label_out_of_range_is_named_before_the_first_step(image_folder: Path) -> None:
    with pytest.raises(DataError, match=r"train/red/0.png .* has label 2, out of range 0..1: the model has 2 classes"):
        dataset(image_folder, num_classes=2)
    with pytest.raises(DataError, match="has label 7, out of range 0..2"):
        dataset(image_folder, options=dict(class_map={"blue": 0, "green": 1, "red": 7}))
    data = dataset(image_folder, name="torch/image_folder", num_classes=2)  # labels known only when a sample is read
    with pytest.raises(DataError, match="image 8 of ImageFolder has label 2"):
        data[2 * NUM_TRAIN]


def test_missing_split_is_not_read_from_the_root(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(image_folder / "train")
    with pytest.raises(DataError, match=r"data has no folder for split 'val': expected .*data/val/<class>"):
        dataset(tmp_path / "data", "val")


def test_unknown_action_is_named(image_folder: Path) -> None:
    with pytest.raises(ValueError, match="on_error must be 'stop' or 'skip', got 'ignore'"):
        dataset(image_folder, on_error="ignore")


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path) -> Path:
    """The images as WebDataset shards of two files a split, in mixed order, with the file that tells timm their sizes."""
    folder = tmp_path / "shards"
    folder.mkdir()
    splits: dict[str, Any] = {}
    for split, synonym in (("train", "train"), ("val", "validation")):
        paths = sorted((image_folder / split).rglob("*.png"))
        random.Random(0).shuffle(paths)
        names = [f"{synonym}-{shard:04d}.tar" for shard in range(2)]
        for shard, name in enumerate(names):
            with tarfile.open(folder / name, "w") as tar:
                for number, path in enumerate(paths[shard::2]):
                    label = str(list(CLASSES).index(path.parent.name)).encode()
                    for extension, content in (("png", path.read_bytes()), ("cls", label)):
                        entry = tarfile.TarInfo(f"{shard}_{number:03d}.{extension}")
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
        lengths = [len(paths[shard::2]) for shard in range(2)]
        splits[synonym] = {"name": synonym, "filenames": names, "shard_lengths": lengths, "num_samples": len(paths)}
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    return folder


def test_webdataset_shards_are_streamed(shards: Path) -> None:
    pytest.importorskip("webdataset")
    options: dict[str, Any] = dict(root=str(shards), num_classes=3, transform=dict(input_size=SIZE), batch_size=4)
    val = list(IterableClassificationDataset("wds/shards", "validation", **options))
    assert sorted(sample["labels"] for sample in val) == sorted(i // NUM_VAL for i in range(len(CLASSES) * NUM_VAL))
    for sample in val:
        mean = sample["inputs"].float().mean((1, 2))
        assert mean.argmax() == np.argmax(list(CLASSES.values())[sample["labels"]])
        assert sample["indices"] == -1

    train = IterableClassificationDataset("wds/shards", "train", training=True, **options)
    assert len(train) == len(CLASSES) * NUM_TRAIN
    assert sorted(sample["labels"] for sample in train) == sorted(list(range(3)) * NUM_TRAIN)
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=train))
    DatasetEpochHook().before_train_epoch(SimpleNamespace(train_loop=loop, epoch=3))  # type: ignore[arg-type]
    assert train.data.reader.epoch_count.value == 3  # shared with the workers; timm's reader orders the shards by it

    small = IterableClassificationDataset("wds/shards", "validation", **{**options, "num_classes": 2})
    with pytest.raises(DataError, match=r"has label 2, out of range 0..1"):
        list(small)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_images_however_they_are_started(image_folder: Path, method: str) -> None:
    """A spawned worker has nothing of this process but the data set."""
    data = dataset(image_folder, transform=dict(input_size=SIZE, auto_augment="rand-m9-mstd0.5"))
    sampler = SeededSampler(data, shuffle=True, seed=5)
    here = list(DataLoader(data, batch_size=4, sampler=sampler))
    there = list(DataLoader(data, batch_size=4, sampler=sampler, num_workers=1, multiprocessing_context=method, timeout=120))
    assert len(here) == len(there) == len(CLASSES) * NUM_TRAIN // 4
    for ours, theirs in zip(there, here, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
