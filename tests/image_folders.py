"""A tiny image folder whose classes can be told by their colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"blue": (30, 40, 200), "green": (20, 190, 40), "red": (210, 30, 30)}
NUM_TRAIN, NUM_VAL = 4, 3  # images of each class


def make_image_folder(folder: Path, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL) -> Path:
    """``{train,val}/{blue,green,red}/*.png``: noise around the class's colour, 48x40."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_val)):
        for name, colour in CLASSES.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(colour, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder
