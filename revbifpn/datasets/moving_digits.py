"""Clips of a digit on a circle: its speed is the label, and no single frame, nor all of them without their order, tells it.

The circle has 16 places. With speed 1, 3, 5 or 7 places a frame, which share no factor with 16, a clip of 16 frames shows the
digit at every place exactly once. So clips of all four levels hold the very same set of frames, and differ in their order
alone: a classifier that averages over frames can do no better than chance.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from revbifpn.datasets.clip_files import write_clip

PLACES = 16
SPEEDS = (1, 3, 5, 7)  # the level is the index
SIZE = 32  # of the pictures, in pixels
_DIGIT = 12
_RADIUS = 9


@dataclass(frozen=True)
class MovingDigits:
    """A set of clips.

    Attributes:
        num_train, num_val: clips, multiples of 4: each level has as many.
        seed: of everything that is drawn.
    """

    num_train: int = 320
    num_val: int = 80
    seed: int = 0


def make_moving_digits(out: Path, parameters: MovingDigits | None = None) -> bool:
    """Write a clip folder with the column ``speed``; the two splits show different digits of scikit-learn's.

    Args:
        out: the folder. One that was written with the same parameters is left as it is.

    Returns:
        Whether it was written.

    Raises:
        ImportError: without PyAV or scikit-learn.
        ValueError: for numbers of clips that are no multiples of 4.
        FileExistsError: if ``out`` holds something else.
    """
    parameters = parameters or MovingDigits()
    for number in (parameters.num_train, parameters.num_val):
        if number % len(SPEEDS) or number < 1:
            raise ValueError(f"the number of clips must be a multiple of {len(SPEEDS)}, got {number}")
    done = out / "parameters.json"
    if done.is_file() and json.loads(done.read_text()) == asdict(parameters):
        return False
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(
            f"{out} is not empty, and holds no clips made with {parameters}: remove it or name another folder"
        )
    digits = _digits()
    half = len(digits) // 2
    rng = np.random.default_rng(parameters.seed)
    for split, count, own in (("train", parameters.num_train, digits[:half]), ("val", parameters.num_val, digits[half:])):
        rows = []
        for number in range(count):
            level = number % len(SPEEDS)
            digit = own[rng.integers(len(own))]
            frames = make_frames(digit, level, int(rng.integers(PLACES)), bool(rng.integers(2)))
            name = f"{split}/{number:05d}.avi"
            write_clip(out / name, frames, codec="ffv1")  # lossless, each frame by itself: nothing of the order leaks
            rows.append((name, level))
        with (out / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "speed"), *rows])
    done.write_text(json.dumps(asdict(parameters)) + "\n")  # last: with it the folder is complete
    return True


def make_frames(digit: NDArray[np.uint8], level: int, start: int, clockwise: bool) -> NDArray[np.uint8]:
    """A clip of 16 frames, (16, 32, 32, 3) uint8.

    Args:
        digit: (12, 12) uint8.
        level: index of the speed.
        start: the place of the first frame.
        clockwise: the direction.
    """
    frames = np.zeros((PLACES, SIZE, SIZE, 3), np.uint8)
    step = SPEEDS[level] if clockwise else -SPEEDS[level]
    for time in range(PLACES):
        angle = 2 * np.pi * ((start + step * time) % PLACES) / PLACES
        left = round(SIZE / 2 + _RADIUS * np.cos(angle) - _DIGIT / 2)
        top = round(SIZE / 2 + _RADIUS * np.sin(angle) - _DIGIT / 2)
        frames[time, top : top + _DIGIT, left : left + _DIGIT] = digit[:, :, None]
    return frames


def _digits() -> NDArray[np.uint8]:
    """scikit-learn's digits, enlarged: (1797, 12, 12)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("moving digits are scikit-learn's: pip install 'revbifpn[video]'") from error
    from PIL import Image

    images = (load_digits().images * (255 / 16)).astype(np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((_DIGIT, _DIGIT), Image.Resampling.BILINEAR)) for image in images]
    )
