"""Moving digits: the label is in the order of frames and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from revbifpn.datasets.clip_files import read_frames
from revbifpn.datasets.clips import check_splits, read_clip_folder
from revbifpn.datasets.moving_digits import PLACES, SPEEDS, MovingDigits, make_frames, make_moving_digits


def test_all_levels_show_the_same_frames_in_another_order() -> None:
    digit = np.random.default_rng(0).integers(0, 255, (12, 12), np.uint8)
    clips = [
        make_frames(digit, level, start, way) for level in range(len(SPEEDS)) for start in (0, 5) for way in (True, False)
    ]
    sets = [sorted(frame.tobytes() for frame in clip) for clip in clips]
    assert all(frames == sets[0] for frames in sets)
    assert len(set(sets[0])) == PLACES
    assert len({clip.tobytes() for clip in clips}) == len(clips)


def test_the_folder(tmp_path: Path) -> None:
    parameters = MovingDigits(num_train=8, num_val=4)
    assert make_moving_digits(tmp_path / "digits", parameters)
    assert not make_moving_digits(tmp_path / "digits", parameters)  # it is there
    splits = [read_clip_folder(tmp_path / "digits", name, {"speed": 4}) for name in ("train", "val")]
    check_splits(splits)
    assert [split.counts("speed") for split in splits] == [[2] * 4, [1] * 4]
    images, count, _ = read_frames(splits[0].clips[0].path, lambda count: range(count))
    assert (count, images.shape) == (16, (16, 32, 32, 3))
    assert len({frame.tobytes() for frame in images}) == PLACES  # lossless
    with pytest.raises(FileExistsError, match="is not empty"):
        make_moving_digits(tmp_path / "digits", MovingDigits(num_train=4, num_val=4))
    with pytest.raises(ValueError, match="multiple of 4, got 3"):
        make_moving_digits(tmp_path / "other", MovingDigits(num_train=3))
