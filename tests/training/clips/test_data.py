"""ClipDataset: one augmentation for all frames of a clip, bad clips by name, labels as targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from revbifpn.datasets.clip_files import ClipError, write_clip
from revbifpn.datasets.image_folders import DataError
from revbifpn.training.clips import ClipDataset
from revbifpn.training.errors import ConfigError
from tests.datasets.daisee_tree import square


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four clips of 12 frames; every frame of a clip is the same noise."""
    rows = ["path,level"]
    for index in range(4):
        noise = torch.randint(0, 255, (1, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        write_clip(tmp_path / f"{index}.avi", noise.expand(12, -1, -1, -1).numpy(), codec="ffv1")
        rows.append(f"{index}.avi,{index}")
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def dataset(root: Path, frames: int = 4, transform: Any = (), **options: Any) -> ClipDataset:
    return ClipDataset(str(root), "train", {"level": {"levels": 4, "kind": "corn"}}, frames, transform, **options)


def test_all_frames_of_a_clip_are_augmented_alike(root: Path) -> None:
    """The frames of these clips are equal, so they stay equal; and another seed augments otherwise."""
    steps = [
        dict(type="RandomResizedCrop", size=(8, 8), scale=(0.3, 0.9)),
        dict(type="RandomHorizontalFlip"),
        dict(type="ColorJitter", brightness=0.5),
    ]
    data = dataset(root, transform=steps, training=True)
    first, again, other = data[0, 1]["inputs"], data[0, 1]["inputs"], data[0, 2]["inputs"]
    assert first.shape == (4, 3, 8, 8)
    assert first.dtype == torch.uint8
    assert all(torch.equal(frame, first[0]) for frame in first)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_seed_leaves_the_random_state_alone(root: Path) -> None:
    data = dataset(root, training=True)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    data[0, 5]
    assert torch.equal(torch.rand(1), expected)


def test_a_batch(root: Path) -> None:
    (root / "soft.csv").write_text("task,0,1,2,3\n0.avi,0.5,0.5,0,0\n")
    data = ClipDataset(str(root), "train", {"level": 4, "other": 4}, 4, [], soft_labels={"other": "soft.csv"})
    batch = default_collate([data[0], data[1]])
    assert batch["inputs"].shape == (2, 4, 3, 16, 16)
    assert batch["labels"]["level"].tolist() == [0, 1]
    assert batch["labels"]["other"][0].tolist() == [0.5, 0.5, 0, 0]
    assert bool(batch["labels"]["other"][1].isnan().all())
    assert batch["indices"].tolist() == [0, 1]


def test_clips_that_cannot_be_decoded(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "1.avi").write_text("no video")
    with pytest.raises(ClipError, match=r"1\.avi cannot be decoded .* on_error='skip'"):
        dataset(root)[1]
    training = dataset(root, on_error="skip", training=True)
    assert training[1]["labels"]["level"] == 2  # the next clip
    assert training[1]["indices"] == 2
    evaluation = dataset(root, on_error="skip", transform=[dict(type="Resize", size=(8, 8))])
    assert (evaluation[1]["labels"]["level"], evaluation[1]["indices"]) == (-1, 1)
    assert evaluation[1]["inputs"].shape == (4, 3, 8, 8)
    for index in (0, 2, 3):
        (root / f"{index}.avi").write_text("no video")
    with pytest.raises(ClipError, match="11 clips in a row cannot be decoded, the last: clip"):
        dataset(root, on_error="skip", training=True)[0]


def test_more_frames_than_the_clip_has(root: Path) -> None:
    write_clip(root / "0.avi", square(3, 1), codec="ffv1")
    inputs = dataset(root, frames=5)[0]["inputs"]
    assert torch.equal(inputs, torch.from_numpy(square(3, 1)).permute(0, 3, 1, 2)[[0, 1, 2, 2, 2]])


def test_labels_without_a_file_stop_or_are_left_out(root: Path) -> None:
    (root / "3.avi").unlink()
    with pytest.raises(DataError, match=r"labels without a file .*: 3\.avi"):
        dataset(root)
    assert len(dataset(root, on_error="skip")) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "kinetics"}, "layout is 'folder' or 'daisee', got 'kinetics'"),
        ({"on_error": "ignore"}, "on_error must be 'stop' or 'skip', got 'ignore'"),
        ({"frames": 0}, "1 frame of a clip at least, got frames=0"),
        ({"transform": [dict(type="Resise", size=8)]}, "has no transform 'Resise'; did you mean 'Resize'"),
        ({"transform": [dict(type="Resize", sizes=8)]}, "transform Resize: .*sizes"),
        ({"layout": "daisee", "soft_labels": {"level": "x.csv"}}, "soft_labels go with layout='folder'"),
    ],
)
def test_wrong_settings_are_named(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset(root, **options)


def test_a_transform_has_to_leave_pixels(root: Path) -> None:
    step = dict(type="ToDtype", dtype=torch.float32, scale=True)
    with pytest.raises(ConfigError, match=r"made torch\.float32 of shape .* it has to return uint8"):
        dataset(root, transform=[step])[0]


def test_daisee(daisee: Path) -> None:
    data = ClipDataset(str(daisee), "Train", {"Engagement": 4}, 4, [], layout="daisee", on_error="skip")
    assert [int(data[index]["labels"]["Engagement"]) for index in range(len(data))] == [0, 1, 2, 3]
