"""Pictures of a detector's predictions beside the ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

try:
    from mmdet.registry import DATASETS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.dataset import pseudo_collate
except ImportError as error:
    raise ImportError("this needs MMEngine and MMDetection: pip install 'revbifpn[mmdet]' (see tools/setup.sh)") from error

_TRUTH = (255, 255, 255)
_MASK_OPACITY = 0.5

Pixels = NDArray[np.uint8]


def draw_predictions(
    cfg: Config, model: nn.Module, folder: Path, count: int = 8, side: int = 480, score_threshold: float = 0.5
) -> list[Path]:
    """Draw predictions over the first images of a config's test set, one PNG for each.

    They are drawn beside the ground truth (:func:`draw_picture`).

    Args:
        model: the detector, on the device to use.
        folder: is made if needed.
        count: images at most.
        side: the longer side of the pictures in pixels.
        score_threshold: predictions under it are left out.

    Returns:
        The files, in the data set's order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for sample, meta in _predict(cfg, model, count):
        found, truth = sample.pred_instances.cpu(), sample.gt_instances.cpu()
        found = found[found.scores >= score_threshold]
        with Image.open(sample.img_path) as image:
            picture = draw_picture(image.convert("RGB"), found, meta, side, side // 19, truth)
        files.append(folder / f"{Path(sample.img_path).stem}.png")
        picture.save(files[-1])
    return files


def contact_sheet(files: Sequence[Path], target: Path, columns: int = 4, side: int = 236, gap: int = 6) -> None:
    """Put pictures side by side into one PNG of 256 colours, each fitted into (side, side) pixels.

    Raises:
        ValueError: if there are no pictures.
    """
    if not files:
        raise ValueError("no pictures for a contact sheet: the test set is empty")
    columns = min(columns, len(files))
    rows = -(-len(files) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + gap) - gap), "white")
    for index, file in enumerate(files):
        picture = Image.open(file)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        sheet.paste(picture, (index % columns * (side + gap), index // columns * (side + gap)))
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(target, optimize=True)


@torch.no_grad()
def _predict(cfg: Config, model: nn.Module, count: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(data sample with ``gt_instances`` and ``pred_instances``, the data set's ``metainfo``) of each image."""
    register_all_modules(init_default_scope=True)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    model.eval()
    for index in range(min(count, len(dataset))):
        samples: Any = model.test_step(pseudo_collate([dataset[index]]))  # type: ignore[operator]
        yield samples[0], dataset.metainfo


def draw_picture(
    image: Image.Image, found: Any, meta: dict[str, Any], side: int, text_size: int, truth: Any = None
) -> Image.Image:
    """Draw predictions over an image: mask, box, class and score of each in its class' colour.

    Args:
        image: RGB.
        found: ``InstanceData`` with ``labels``, ``scores``, ``bboxes`` and perhaps ``masks``, on the CPU.
        meta: ``classes`` and their ``palette``.
        side: the longer side of the picture in pixels.
        text_size: of the names, in pixels.
        truth: ``InstanceData`` with ``labels`` and ``bboxes``, drawn as thin white boxes, their classes under them.
    """
    scale = side / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    pixels = np.array(image.resize(size, Image.Resampling.BICUBIC))
    found = found[found.scores.argsort()]  # the most certain ones last, over the others
    for label, mask in zip(found.labels, found.get("masks", ()), strict=False):
        _tint(pixels, np.asarray(mask), meta["palette"][label])
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    font: Any = ImageFont.load_default(max(10, text_size))
    for label, box in zip(truth.labels, _corners(truth.bboxes), strict=True) if truth is not None else ():
        x0, y0, x1, y1 = (float(c) * scale for c in box)
        draw.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), outline=_TRUTH)
        _write(draw, (x1, y1), meta["classes"][label], (0, 0, 0), _TRUTH, font, "rd")
    for label, score, box in zip(found.labels, found.scores, found.bboxes, strict=True):
        colour = tuple(int(channel) for channel in meta["palette"][label])
        x0, y0, x1, y1 = (float(c) * scale for c in box)
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=max(2, side // 200))
        text = f"{meta['classes'][label]}: {score:.2f}"
        below = y0 < 1.5 * font.size  # no room over the box
        _write(draw, (x0, y0), text, _readable_on(colour), colour, font, "la" if below else "ld")
    return picture


def _readable_on(colour: Sequence[int]) -> tuple[int, int, int]:
    """Black or white."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else (255, 255, 255)


def _corners(boxes: Any) -> torch.Tensor:
    """MMDetection's box type or a tensor -> (boxes, 4), x0 y0 x1 y1."""
    corners: torch.Tensor = getattr(boxes, "tensor", boxes)
    return corners


def _tint(pixels: Pixels, mask: NDArray[np.bool_], colour: Sequence[int]) -> None:
    """Blend a colour over the mask's pixels, in place; the mask may have another size."""
    height, width = pixels.shape[:2]
    scaled = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    where = np.asarray(scaled) >= 128
    blended = (1 - _MASK_OPACITY) * pixels[where] + _MASK_OPACITY * np.array(colour)
    pixels[where] = blended.round().astype(np.uint8)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: Any, background: Any, font: Any, anchor: str
) -> None:
    draw.rectangle(draw.textbbox(at, text, font=font, anchor=anchor), fill=background)
    draw.text(at, text, fill=colour, font=font, anchor=anchor)
