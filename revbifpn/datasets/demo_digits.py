"""The demo's data set: a small semi-synthetic one in COCO format, made from real material of installed packages.

Handwritten digits (scikit-learn's ``load_digits``) are pasted on photographs (scikit-image's and scikit-learn's files on
disk; nothing is downloaded). Boxes and masks are computed from the pasted pixels, so they are exact. No digit sample and no
photograph is in both splits.

Layout of the folder::

    parameters.json               what it was made with; written last, so its presence means that the folder is complete
    annotations/{train,val}.json  COCO instances; masks as compressed RLE
    {train,val}/000000.jpg        square RGB images
"""

from __future__ import annotations

import colorsys
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMAT = 1  # of what is drawn: raise it when the same parameters give other images

# Only photographs; a scene is in one split (motorcycle_left and _right are a stereo pair).
PHOTOS: dict[str, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "brick.png",
        "gravel.png",
        "coins.png",
        "moon.png",
        "clock_motion.png",
        "retina.jpg",
        "hubble_deep_field.jpg",
        "china.jpg",
        "flower.jpg",
    ),
    "val": ("chelsea.png", "coffee.png", "camera.png", "grass.png"),
}
_PHOTO_FOLDERS = ("skimage.data", "sklearn.datasets.images")
_DIGIT_SIDE = (0.22, 0.42)  # of a digit's 8x8 cell, as parts of the image side
_GAP = 2  # pixels at least between two boxes
_LIGHT, _DARK = 0.92, 0.06  # luminance of the pasted colours
_OWN_FILES = re.compile(r"parameters\.json|annotations/(train|val)\.json|(train|val)/\d{6}\.jpg")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DemoDataParameters:
    """What the data set is made with.

    Args:
        seed: of every random choice, not negative.
        num_train, num_val: images of a split, 1 to 100000.
        image_size: side of the images in pixels, a multiple of 32 (RevBiFPN's coarsest stride), 64 at least.
        classes: the digits to paste, each one a class; each at most once.
        max_digits: digits on an image at most (2 at least are tried).

    Raises:
        ValueError: naming the value and what is allowed.
    """

    seed: int = 0
    num_train: int = 800
    num_val: int = 100
    image_size: int = 192
    classes: tuple[int, ...] = (0, 1, 2, 4, 7)
    max_digits: int = 8

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}; take 0 or more")
        for name in ("num_train", "num_val"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise ValueError(f"{name} must be in 1..100000 images, got {getattr(self, name)}")
        if self.image_size < 64 or self.image_size % 32:
            lower = max(64, self.image_size // 32 * 32)
            raise ValueError(
                f"image_size must be a multiple of 32 and 64 at least, got {self.image_size}; {lower} or {lower + 32} would do"
            )
        if not self.classes or len(set(self.classes)) != len(self.classes) or not set(self.classes) <= set(range(10)):
            raise ValueError(f"classes must be different digits of 0..9, got {list(self.classes)}; for example 0 1 4 7")
        if self.max_digits < 2:
            raise ValueError(f"max_digits must be 2 at least, got {self.max_digits}")

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT} | asdict(self) | {"classes": list(self.classes)}


def make_demo_data(out: Path, parameters: DemoDataParameters | None = None, force: bool = False) -> bool:
    """Write the data set, unless it is there already.

    A half-written one is replaced. The same parameters (and versions of the packages) give identical bytes.

    Args:
        out: the folder to write.
        parameters: the defaults when None.
        force: replace a data set that was made with other parameters.

    Returns:
        Whether something was written; False if the folder was complete.

    Raises:
        ImportError: if scikit-learn or scikit-image are missing.
        FileExistsError: if ``out`` holds other files, or a data set made with other parameters without ``force``.
        FileNotFoundError: if the packages carry no photograph for a split.
    """
    parameters = parameters or DemoDataParameters()
    existing = _read_parameters(out)
    if existing == parameters.as_json() and _is_complete(out, parameters):
        return False
    if existing is not None and existing != parameters.as_json() and not force:
        changed = {k: v for k, v in existing.items() if parameters.as_json().get(k) != v}
        raise FileExistsError(f"{out} was made with other parameters ({changed}); use --force to replace it, or another --out")
    foreign = _foreign_files(out)
    if foreign:
        raise FileExistsError(f"{out} holds files of something else ({foreign[0]}); name another folder with --out")

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    samples = _split_digits(parameters)
    for index, split in enumerate(("train", "val")):
        count = parameters.num_train if split == "train" else parameters.num_val
        _write_split(partial, split, count, samples[split], np.random.SeedSequence((parameters.seed, index)), parameters)
    (partial / "parameters.json").write_text(json.dumps(parameters.as_json(), indent=2) + "\n")
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return True


def _read_parameters(out: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((out / "parameters.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _is_complete(out: Path, parameters: DemoDataParameters) -> bool:
    counts = {"train": parameters.num_train, "val": parameters.num_val}
    return all(
        (out / f"annotations/{split}.json").is_file() and len(list((out / split).glob("*.jpg"))) == count
        for split, count in counts.items()
    )


def _foreign_files(out: Path) -> list[str]:
    if not out.exists():
        return []
    if not out.is_dir():
        return [out.name]
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    return [name for name in names if not _OWN_FILES.fullmatch(name)]


def _split_digits(parameters: DemoDataParameters) -> dict[str, dict[int, Floats]]:
    """split -> class -> (samples, 8, 8) in 0..1; three quarters of each class are for training."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing("scikit-learn") from error
    digits = load_digits()
    rng = np.random.default_rng((parameters.seed, 2))
    result: dict[str, dict[int, Floats]] = {"train": {}, "val": {}}
    for label in parameters.classes:
        images = (digits.images[digits.target == label] / 16).astype(np.float32)
        images = images[rng.permutation(len(images))]
        cut = len(images) * 3 // 4
        result["train"][label], result["val"][label] = images[:cut], images[cut:]
    return result


def _missing(package: str) -> ImportError:
    return ImportError(f"the demo's data set needs {package}: pip install 'revbifpn[demo]'")


def load_photos(split: str) -> dict[str, Image.Image]:
    """Load the photographs of a split that are on disk: file name -> RGB image.

    Raises:
        ImportError: if scikit-learn or scikit-image are missing.
        FileNotFoundError: if none of the photographs is there.
    """
    photos = {}
    for name in PHOTOS[split]:
        for module in _PHOTO_FOLDERS:
            try:
                path = resources.files(module) / name
            except ImportError as error:
                raise _missing("scikit-image and scikit-learn") from error
            if path.is_file():
                with path.open("rb") as file:
                    photos[name] = Image.open(file).convert("RGB")
    if not photos:
        raise FileNotFoundError(
            f"none of the photographs {', '.join(PHOTOS[split])} is in {' or '.join(_PHOTO_FOLDERS)}: "
            "install scikit-image 0.24 to 0.26, which carry them"
        )
    return photos


def _write_split(
    folder: Path,
    split: str,
    count: int,
    samples: dict[int, Floats],
    seeds: np.random.SeedSequence,
    parameters: DemoDataParameters,
) -> None:
    from tqdm import tqdm

    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    photos = list(load_photos(split).values())
    size = parameters.image_size
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, seed in enumerate(tqdm(seeds.spawn(count), desc=f"{split} images", unit="image")):
        rng = np.random.default_rng(seed)
        canvas = _crop(photos[index % len(photos)], size, rng)
        name = f"{index:06d}.jpg"
        for label, mask in _paste_digits(canvas, samples, parameters.max_digits, rng):
            annotations.append(_annotation(len(annotations) + 1, index + 1, parameters.classes.index(label) + 1, mask))
        pixels = (canvas * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / split / name, quality=95, subsampling=0)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
    categories = [{"id": i + 1, "name": str(label), "supercategory": "digit"} for i, label in enumerate(parameters.classes)]
    content = {
        "info": {"description": "semi-synthetic: handwritten digits pasted on photographs"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (folder / f"annotations/{split}.json").write_text(json.dumps(content))


def _crop(photo: Image.Image, size: int, rng: np.random.Generator) -> Floats:
    """Return a random square of a photograph, mirrored half of the time -> (size, size, 3) in 0..1."""
    side = int(min(photo.size) * rng.uniform(0.5, 1))
    left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
    square = photo.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    pixels = np.asarray(square, dtype=np.float32) / 255
    return np.ascontiguousarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels)


def _paste_digits(
    canvas: Floats, samples: dict[int, Floats], max_digits: int, rng: np.random.Generator
) -> Iterable[tuple[int, NDArray[np.bool_]]]:
    """Paste digits on ``canvas`` in place, none over another; yields (class, mask of the canvas' size)."""
    size = canvas.shape[0]
    taken = np.zeros((size, size), dtype=bool)
    labels = rng.permutation([label for label in samples for _ in range(max_digits)])  # balanced, in random order
    for label in labels[: rng.integers(max(2, max_digits // 2), max_digits + 1)]:
        glyphs = samples[int(label)]
        side = int(size * rng.uniform(*_DIGIT_SIDE))
        alpha = _glyph_alpha(glyphs[rng.integers(len(glyphs))], side)
        height, width = alpha.shape
        for _ in range(20):
            top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
            around = np.s_[max(top - _GAP, 0) : top + height + _GAP, max(left - _GAP, 0) : left + width + _GAP]
            if not taken[around].any():
                break
        else:
            continue  # no room
        where = np.s_[top : top + height, left : left + width]
        taken[where] = True
        patch = canvas[where]
        canvas[where] += alpha[..., None] * (_colour(patch, rng) - patch)
        mask = np.zeros((size, size), dtype=bool)
        mask[where] = alpha >= 0.5
        yield int(label), mask


def _glyph_alpha(digit: Floats, side: int) -> Floats:
    """(8, 8) -> opacity in 0..1, scaled up smoothly as if 8x8 were (side, side), cropped to the visible digit."""
    image = Image.fromarray(np.pad(digit, 1))  # the margin keeps strokes at the edge round
    scaled = np.asarray(image.resize((side * 10 // 8,) * 2, Image.Resampling.BICUBIC))
    ramp = np.clip((scaled - 0.3) / 0.3, 0, 1)  # a stroke edge some pixels wide rather than one eighth of the digit
    alpha = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
    rows, columns = np.nonzero(alpha >= 0.5)
    return alpha[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _colour(patch: Floats, rng: np.random.Generator) -> Floats:
    """Return a random hue, light on dark patches and dark on light ones: (3,) in 0..1."""
    weights = np.array([0.299, 0.587, 0.114])
    colour = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.5, 1), 1))
    luminance = colour @ weights
    if (patch @ weights).mean() < 0.5:
        target = max(_LIGHT, luminance)
        colour = colour + (1 - colour) * (target - luminance) / max(1 - luminance, 1e-6)
    else:
        colour = colour * (_DARK / luminance)
    return colour.astype(np.float32)


def _annotation(identifier: int, image_id: int, category_id: int, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO annotation of a mask; the box is the smallest that holds it."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "id": identifier,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(x) for x in coco_mask.toBbox(rle)],
        "area": int(coco_mask.area(rle)),
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
        "iscrowd": 0,
    }
