"""Fashion-MNIST as an image folder: from the four IDX files to ``train/<class>/*.png`` and ``val/<class>/*.png``.

The files are those of the Debian package ``dataset-fashion-mnist`` (60,000 + 10,000 grey images of 28x28). Layout written::

    source.json                    file names and sha256 of what it was made from; written last, so that its presence
                                   means that the folder is complete
    {train,val}/0_t-shirt/00000.png
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The number keeps timm's label, which comes from the sorted folder names, equal to the data set's own.
CLASSES = (
    "0_t-shirt",
    "1_trouser",
    "2_pullover",
    "3_dress",
    "4_coat",
    "5_sandal",
    "6_shirt",
    "7_sneaker",
    "8_bag",
    "9_ankle-boot",
)
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "val": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_UNSIGNED_BYTES = 0x08  # IDX's code of the element type


def make_fashion_mnist(source: Path, out: Path, force: bool = False) -> bool:
    """Write the image folder, unless it is there already. A half-written one is replaced.

    Args:
        source: folder with the four ``*-ubyte.gz`` files.
        out: the folder to write.
        force: replace a folder that was made from other files.

    Returns:
        Whether something was written; False if the folder was complete.

    Raises:
        FileNotFoundError: naming the missing source files and the Debian package that has them.
        ValueError: naming a source file that is truncated, damaged or no IDX file, and why.
        FileExistsError: if ``out`` holds something else, or was made from other files without ``force``.
    """
    paths = {name: source / name for names in FILES.values() for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{source} has no {', '.join(missing)}: expected {', '.join(paths)}. Debian's package dataset-fashion-mnist "
            "puts them into /usr/share/datasets/fashion-mnist; name another folder with --source"
        )
    made_from = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    existing = _made_from(out)
    if existing == made_from:
        return False
    if existing is not None and not force:
        raise FileExistsError(f"{out} was made from other files; use --force to replace it, or another --out")
    if existing is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and was not made by this tool; name another folder with --out")

    splits = {split: _read_split(paths[images], paths[labels]) for split, (images, labels) in FILES.items()}
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, (images, labels) in splits.items():
        for name in CLASSES:
            (partial / split / name).mkdir(parents=True)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(partial / split / CLASSES[label] / f"{index:05d}.png")
    (partial / "source.json").write_text(json.dumps(made_from, indent=2) + "\n")
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return True


def _made_from(out: Path) -> dict[str, str] | None:
    try:
        content: Any = json.loads((out / "source.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _read_split(images_path: Path, labels_path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(f"{images_path} has {len(images)} images, {labels_path} {len(labels)} labels")
    if len(labels) and labels.max() >= len(CLASSES):
        index = int(labels.argmax())
        raise ValueError(f"{labels_path}: label {labels[index]} of image {index} is out of range 0..{len(CLASSES) - 1}")
    return images, labels


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in a gzipped IDX file.

    Raises:
        ValueError: naming the file, if it is damaged, truncated, no IDX file, or has another number of dimensions.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or truncated: {error}") from error
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
    if content[:4] != magic:
        raise ValueError(
            f"{path} is no IDX file of unsigned bytes with {dimensions} dimensions: it begins with {content[:4].hex()}, "
            f"expected {magic.hex()}"
        )
    if len(content) < header:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, its header alone has {header}")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(f"{path} is truncated or damaged: {len(content) - header} bytes for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
