"""Class probabilities as targets: read, joined to the images, mixed, and trained on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from revbifpn.training.classification import ClassificationDataset, DataError, ImageClassifier
from tests.image_folders import CLASSES, NUM_TRAIN
from tests.training.classification.conftest import MakeConfig, fresh_runner


def write_soft_labels(folder: Path, names: str = "{name}/{index}.png", header: str = "image,red,blue,green") -> Path:
    """Images of a class have it by 0.7, and the next one in the header by 0.3; a row of no image is there too."""
    columns = header.split(",")[1:]
    rows = [header, "elsewhere.png,1,0,0"]
    for name in CLASSES:
        own = columns.index(name)
        chances = ["0"] * 3
        chances[own], chances[(own + 1) % 3] = "0.7", "0.3"
        rows += [",".join((names.format(name=name, index=index), *chances)) for index in range(NUM_TRAIN)]
    path = folder / "soft.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def dataset(root: Path, path: Path, **options: Any) -> ClassificationDataset:
    options = {"split": "train", "num_classes": 3, "training": True, "transform": dict(input_size=32)} | options
    return ClassificationDataset(str(root), soft_labels=str(path), **options)


def test_a_sample_has_the_probabilities_of_its_image(image_folder: Path, tmp_path: Path) -> None:
    data = dataset(image_folder, write_soft_labels(tmp_path))
    assert data.metainfo["classes"] == ("blue", "green", "red")
    # By the header red goes to blue, blue to green, green to red.
    expected = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.3, 0.0, 0.7]])
    for index in range(len(data)):
        torch.testing.assert_close(data[index, 0]["labels"], expected[index // NUM_TRAIN])
    (batch,) = DataLoader(data, batch_size=len(data))
    assert batch["labels"].shape == (len(data), 3)
    assert batch["labels"].dtype == torch.float32


def test_file_names_that_one_image_has_are_enough(own_folder: Path, tmp_path: Path) -> None:
    for name in CLASSES:
        for index in range(NUM_TRAIN):
            path = own_folder / "train" / name / f"{index}.png"
            path.rename(path.with_name(f"{name}_{index}.png"))
    data = dataset(own_folder, write_soft_labels(tmp_path, "{name}_{index}.png"))
    assert data[0, 0]["labels"].argmax() == 0


def test_file_names_that_images_share_are_not(image_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "soft.csv"
    path.write_text("image,red,blue,green\n" + "".join(f"{index}.png,1,0,0\n" for index in range(NUM_TRAIN)))
    with pytest.raises(DataError, match="has no row for blue/0.png and 11 other images"):
        dataset(image_folder, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("image,red", "image,pink"),
            "columns for the classes pink, blue, green, the folders are blue, ",
        ),
        (lambda text: text.replace("blue/1.png,", "blue/0.png,"), "line 4: a second row for blue/0.png"),
        (lambda text: text.replace("blue/1.png,", "blue/9.png,"), "has no row for blue/1.png: name images by their path"),
        (
            lambda text: text.replace("0.7", "0.6", 1),
            "line 3: probabilities must not be negative and sum to 1, got 0.6, 0.3, 0",
        ),
        (lambda text: text.replace("red/0.png,0.7,0.3,0", "red/0.png,0.7,nan,0.3"), "probabilities must not be negative"),
        (lambda text: text.replace("0.7", "most", 1), "line 3: could not convert string to float: 'most'"),
    ],
)
def test_files_that_do_not_fit_are_named(image_folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    path = write_soft_labels(tmp_path)
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    with pytest.raises(DataError, match=re.escape(message)):
        dataset(image_folder, path)


def test_where_soft_labels_cannot_be(image_folder: Path, tmp_path: Path) -> None:
    path = write_soft_labels(tmp_path)
    with pytest.raises(DataError, match="soft_labels is for training on an image folder"):
        dataset(image_folder, path, training=False, split="val")
    with pytest.raises(DataError, match="soft_labels is for training on an image folder"):
        dataset(image_folder, path, name="torch/image_folder")
    with pytest.raises(DataError, match="needs the model's 4 classes as folders, there are 3"):
        dataset(image_folder, path, num_classes=4)
    with pytest.raises(FileNotFoundError):
        dataset(image_folder, tmp_path / "no.csv")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_the_probabilities(smoothing: float) -> None:
    torch.manual_seed(0)
    x, soft = torch.randn(4, 3, 32, 32), torch.softmax(torch.randn(4, 3), 1)
    model = ImageClassifier("test_resnet", 3, loss=dict(loss_type="ce", smoothing=smoothing)).eval()
    expected = F.cross_entropy(model(x), soft, label_smoothing=smoothing)
    torch.testing.assert_close(model(x, soft, mode="loss")["loss"], expected)
    # Certain probabilities are a class.
    hard = torch.tensor([2, 0, 1, 1])
    torch.testing.assert_close(model(x, F.one_hot(hard, 3).float(), mode="loss")["loss"], model(x, hard, mode="loss")["loss"])


def test_mixup_mixes_probabilities_as_it_mixes_classes() -> None:
    import numpy as np

    torch.manual_seed(0)
    options = dict(mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, mode="elem"), loss=dict(loss_type="ce", smoothing=0.1))
    model = ImageClassifier("test_resnet", 3, **options)  # type: ignore[arg-type]
    x, hard = torch.randn(4, 3, 32, 32), torch.tensor([2, 0, 1, 1])
    mixed = []
    for labels in (hard, F.one_hot(hard, 3).float()):
        np.random.seed(0)
        mixed.append(model._mix(x.clone(), labels))
    torch.testing.assert_close(mixed[1][0], mixed[0][0])
    torch.testing.assert_close(mixed[1][1], mixed[0][1])
    torch.testing.assert_close(mixed[0][1].sum(1), torch.ones(4))
    assert model(x, F.one_hot(hard, 3).float(), mode="loss")["loss"].isfinite()


def test_the_runner_trains_on_them(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the config's line to the loss: each image of an epoch has its own probabilities, smoothed as classes are."""
    seen: list[torch.Tensor] = []
    plain = ImageClassifier._criterion_of

    def watched(self: ImageClassifier, targets: torch.Tensor) -> torch.nn.Module:
        seen.append(targets)
        return plain(self, targets)

    monkeypatch.setattr(ImageClassifier, "_criterion_of", watched)
    settings = {"train_cfg.max_epochs": 1, "train_dataloader.dataset.soft_labels": str(write_soft_labels(tmp_path))}
    fresh_runner(make_config(**settings)).train()
    expected = (
        torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.3, 0.0, 0.7]]).repeat_interleave(NUM_TRAIN, 0) * 0.9 + 0.1 / 3
    )
    found = torch.cat(seen)
    torch.testing.assert_close(found.sort(0).values, expected.sort(0).values)
    assert found.unique(dim=0).shape == (3, 3)
