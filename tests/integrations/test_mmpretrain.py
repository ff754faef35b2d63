"""RevBiFPN in MMPretrain: the published classifier by its wrapper of timm's models, and the backbone under its own head."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image

pytest.importorskip(
    "mmpretrain.models",
    reason="MMPretrain is not there, or does not import: tools/setup.sh installs it (requirements/openmmlab.txt)",
    exc_type=ImportError,
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "mmpretrain").glob("*.py"))


def build(path: Path) -> Any:
    cfg = Config.fromfile(path)
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    return MODELS.build(cfg.model)


def samples(labels: list[int]) -> list[Any]:
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(label) for label in labels]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_training_step_reaches_every_parameter(path: Path) -> None:
    model = build(path).train()
    total, _ = model.parse_losses(model(torch.randn(2, 3, 64, 64), samples([3, 777]), mode="loss"))
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_predicts_a_class(path: Path) -> None:
    model = build(path).eval()
    with torch.no_grad():
        (result,) = model(torch.randn(1, 3, 64, 64), samples([0]), mode="predict")
    assert result.pred_score.shape == (1000,)
    assert float(result.pred_score.sum()) == pytest.approx(1, abs=1e-4)
    assert result.pred_label.item() == result.pred_score.argmax().item()


def test_the_published_classifier_is_the_timm_model() -> None:
    """Its checkpoints are timm's, without a prefix."""
    (path,) = (path for path in CONFIGS if "timm" in path.stem)
    model = build(path).eval()
    twin = timm.create_model("revbifpn_s0").eval()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))


def make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("bird", "cat"):
            (folder / split / label).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 255, (80, 96, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{index}.jpg")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_runner_trains_and_validates(path: Path, tmp_path: Path) -> None:
    """An epoch of two steps and a validation by MMEngine's Runner, with the config's own pipelines and optimizer."""
    make_images(tmp_path / "data")
    cfg = Config.fromfile(path)
    cfg.work_dir = str(tmp_path / "work")
    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = cfg.param_scheduler[:1]  # the warm-up; the cosine begins after it
    for name, split in (("train", "train"), ("val", "val"), ("test", "val")):
        loader = cfg[f"{name}_dataloader"]
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        pipeline = [dict(step, **{k: 64 for k in ("scale", "crop_size") if k in step}) for step in loader.dataset.pipeline]
        loader.dataset = dict(type="CustomDataset", data_prefix=str(tmp_path / "data" / split), pipeline=pipeline)
    runner = Runner.from_cfg(cfg)
    before = [p.detach().clone() for p in runner.model.parameters()]
    runner.train()
    assert runner.iter == 2
    assert any(not torch.equal(p, old) for p, old in zip(runner.model.parameters(), before, strict=True))
    assert math.isfinite(runner.message_hub.log_scalars["train/loss"].current())
    assert 0 <= runner.message_hub.log_scalars["val/accuracy/top1"].current() <= 100
