"""Predictions of a detector for images of any kind: pictures, and a file in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from PIL import Image, ImageOps
from torch import nn
from tqdm import tqdm

from revbifpn.datasets.image_folders import DataError
from revbifpn.training.checkpoints import WEIGHTS_ONLY
from revbifpn.training.checks import is_classification
from revbifpn.training.config_files import named_build_errors
from revbifpn.training.detection.checkpoint import DetectorCheckpoint
from revbifpn.training.detection.drawing import draw_picture
from revbifpn.training.errors import ConfigError

try:
    from mmcv.transforms import Compose
    from mmdet.apis import inference_detector
    from mmdet.apis.det_inferencer import IMG_EXTENSIONS
    from mmdet.registry import DATASETS, MODELS
    from mmdet.utils import get_test_pipeline_cfg
    from mmdet.visualization import get_palette
    from pycocotools import mask as coco_mask
except ImportError as error:
    raise ImportError("this needs MMEngine and MMDetection: pip install 'revbifpn[mmdet]' (see tools/setup.sh)") from error

_SMALLEST_SIDE = 640  # longer side of the pictures in pixels, at least


@dataclass
class Predictions:
    """What a prediction did.

    Attributes:
        images: how many were done.
        objects: how many were found in them.
        broken: images that could not be read, and why.
    """

    images: int = 0
    objects: int = 0
    broken: list[tuple[Path, str]] = field(default_factory=list)


def find_images(path: Path) -> list[Path]:
    """An image, or all images in a folder and the folders in it, by name.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        DataError: if the folder has no images.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no such image or folder: {path}")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS and file.is_file())
    if not found:
        raise DataError(f"no images in {path}: they are files that end in {', '.join(IMG_EXTENSIONS)}")
    return found


def load_detector(cfg: Config, checkpoint: str, device: str) -> nn.Module:
    """Build a config's detector with the checkpoint's classes and weights, for predictions.

    Raises:
        FileNotFoundError, CheckpointError: if the checkpoint cannot be read or does not fit.
        ConfigError: if the config is not one of detection, or there is no such device.
    """
    if is_classification(cfg):
        raise ConfigError(f"{cfg.filename} is a config of classification: it finds no objects in images")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: there is no GPU that could be used; leave it out, or say --device cpu")
    content = DetectorCheckpoint.read(checkpoint)
    content.fit_config(cfg)
    init_default_scope(cfg.get("default_scope") or "mmdet")
    with named_build_errors(cfg):
        model: Any = revert_sync_batchnorm(MODELS.build(cfg.model))
        dataset = DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": True})  # only for what it says about classes
    content.check_fits(model)
    load_checkpoint(model, f"{WEIGHTS_ONLY}{checkpoint}", map_location="cpu")
    classes = dataset.metainfo["classes"]
    model.dataset_meta = {
        "classes": classes,
        "palette": get_palette(dataset.metainfo.get("palette") or "random", len(classes)),
    }
    model.cfg = cfg
    return model.to(device).eval()  # type: ignore[no-any-return]


def predict(
    model: nn.Module, images: Sequence[Path], root: Path, target: Path, pictures: Path | None, score_threshold: float
) -> Predictions:
    """Predict for images one after the other.

    Args:
        model: of :func:`load_detector`.
        images: files in ``root``.
        root: the folder that file names are relative to.
        target: the JSON file: ``images``, ``categories`` (numbered from 1) and ``annotations``, each with a ``score``. It is
            written when the prediction ends, be it that it was interrupted.
        pictures: folder for the pictures; None draws none.
        score_threshold: predictions under it are left out.
    """
    meta: Any = model.dataset_meta
    pipeline = _pipeline(model.cfg)
    result = Predictions()
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(meta["classes"], 1)],
    }
    taken: set[Path] = set()
    try:
        for path in tqdm(images, desc="predicting", unit="image"):
            try:
                with Image.open(path) as file:
                    image = ImageOps.exif_transpose(file).convert("RGB")
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # of Pillow's many readers
                result.broken.append((path, " ".join(str(error).split()) or type(error).__name__))
                continue
            pixels = np.asarray(image)[..., ::-1]  # blue, green, red, as OpenCV reads images
            found = inference_detector(model, np.ascontiguousarray(pixels), pipeline).pred_instances.cpu()
            found = found[found.scores >= score_threshold]
            number = len(content["images"]) + 1
            name = path.relative_to(root)
            size = {"width": image.width, "height": image.height}
            content["images"].append({"id": number, "file_name": name.as_posix(), **size})
            content["annotations"] += _annotations(found, number, len(content["annotations"]) + 1)
            if pictures is not None:
                side = max(_SMALLEST_SIDE, *image.size)
                file_name = _free_name(pictures / name, taken)
                file_name.parent.mkdir(parents=True, exist_ok=True)
                draw_picture(image, found, meta, side, text_size=side // 45).save(file_name, quality=92)
    finally:
        result.images, result.objects = len(content["images"]), len(content["annotations"])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))
    return result


def _pipeline(cfg: Any) -> Any:
    """The config's test pipeline for an image in memory."""
    first, *rest = get_test_pipeline_cfg(cfg.copy())
    return Compose([first | {"type": "mmdet.LoadImageFromNDArray"}, *rest])


def _annotations(found: Any, image_id: int, first: int) -> Iterator[dict[str, Any]]:
    masks = found.get("masks")
    for index, (box, score, label) in enumerate(zip(found.bboxes, found.scores, found.labels, strict=True)):
        x0, y0, x1, y1 = box.tolist()
        annotation = {
            "id": first + index,
            "image_id": image_id,
            "category_id": int(label) + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "score": float(score),
            "iscrowd": 0,
        }
        if masks is not None:
            rle = coco_mask.encode(np.asfortranarray(masks[index], dtype=np.uint8))
            annotation["area"] = int(coco_mask.area(rle))
            annotation["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
        yield annotation


def _free_name(path: Path, taken: set[Path]) -> Path:
    """A JPEG's name that no other image took: ``a.png`` and ``a.jpg`` may lie side by side."""
    candidate = path.with_suffix(".jpg")
    if candidate in taken:
        candidate = path.with_name(f"{path.stem}_{path.suffix[1:]}.jpg")
    taken.add(candidate)
    return candidate
