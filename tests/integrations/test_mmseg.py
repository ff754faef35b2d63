"""RevBiFPN in MMSegmentation: its configs build, train, validate and predict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from revbifpn.integrations.mmdet import RevBiFPNBackbone
from revbifpn.models import VARIANTS

pytest.importorskip(
    "mmseg.models",
    reason="MMSegmentation is not there, or does not import: tools/setup.sh installs it (requirements/openmmlab.txt)",
    exc_type=ImportError,
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "segmentation").glob("*.py"))
SMALL = [path for path in CONFIGS if "revbifpn-s0" in path.stem]
CLASSES = 150


def build(path: Path) -> Any:
    cfg = Config.fromfile(path)
    init_default_scope("mmseg")
    torch.manual_seed(0)
    return revert_sync_batchnorm(MODELS.build(cfg.model))


def sample(height: int, width: int) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.randint(CLASSES, (1, height, width), generator=torch.Generator().manual_seed(0))
    shapes = dict(img_shape=(height, width), ori_shape=(height, width))
    return SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=shapes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_is_what_its_name_says(path: Path) -> None:
    head, backbone, _, data = path.stem.split("_")[:4]
    cfg = Config.fromfile(path)
    init_default_scope("mmseg")
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    assert type(model.decode_head).__name__ == {"upernet": "UPerHead", "fcn": "FCNHead"}[head]
    assert isinstance(model.backbone, RevBiFPNBackbone)
    variant = VARIANTS[backbone.removeprefix("revbifpn-")]
    assert model.backbone.variant is variant
    wanted = {"upernet": list(variant.neck_channels), "fcn": sum(variant.neck_channels)}[head]
    assert model.decode_head.in_channels == wanted
    assert model.num_classes == CLASSES
    assert data == "ade20k-512x512"
    assert cfg.model.data_preprocessor.size == (512, 512)
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.train_cfg.max_iters == 80_000


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_a_training_step_reaches_every_parameter(path: Path) -> None:
    model = build(path).train()
    losses = model(torch.randn(2, 3, 64, 96), [sample(64, 96) for _ in range(2)], mode="loss")
    total, logs = model.parse_losses(losses)
    total.backward()
    assert all(value.isfinite() for value in logs.values())
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_predictions_have_the_images_size(path: Path) -> None:
    """Sides that are no multiples of 32 are padded, and the padding is cut off."""
    model = build(path).eval()
    with torch.no_grad():
        data = model.data_preprocessor(
            {"inputs": [torch.zeros(3, 70, 100, dtype=torch.uint8)], "data_samples": [sample(70, 100)]}, training=False
        )
        assert data["inputs"].shape == (1, 3, 96, 128)
        (result,) = model(**data, mode="predict")
    assert result.pred_sem_seg.data.shape == (1, 70, 100)


def make_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(2):
            label = rng.integers(1, 4, (2, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
            Image.fromarray(label).save(folder / "annotations" / split / f"{index}.png")
            Image.fromarray(np.stack([label * 60] * 3, axis=-1)).save(folder / "images" / split / f"{index}.jpg")


def test_runner_trains_and_validates(tmp_path: Path) -> None:
    """Two steps and a validation by MMEngine's Runner, with the config's own pipelines, schedule and hooks."""
    make_data(tmp_path / "data")
    (path,) = (path for path in SMALL if path.stem.startswith("upernet"))
    cfg = Config.fromfile(path)
    cfg.work_dir = str(tmp_path / "work")
    cfg.model.data_preprocessor.size = (64, 64)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=min(2, loader.batch_size), num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(tmp_path / "data")
        for step in loader.dataset.pipeline:
            step.update({key: value for key, value in dict(scale=(96, 64), crop_size=(64, 64)).items() if key in step})
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.visualization.draw = False
    cfg.env_cfg.cudnn_benchmark = False
    runner = Runner.from_cfg(cfg)
    before = runner.model.backbone.neck[0].project.conv.weight.detach().clone()
    runner.train()
    assert runner.iter == 2
    assert not torch.equal(runner.model.backbone.neck[0].project.conv.weight, before)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in runner.model.modules())
    scalars = runner.message_hub.log_scalars
    assert math.isfinite(scalars["train/loss"].current())
    assert 0 <= scalars["val/mIoU"].current() <= 100
