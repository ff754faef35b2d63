"""Short trainings of the demo's detector in the ways that MMDetection's users know.

Two processes (``--launcher pytorch``) are in ``tests/distributed/test_mmengine.py``; going on in the middle of an epoch, bit
for bit, in ``tests/training/test_faults.py``: four steps are an epoch there, and trainings go on after two and six.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.ops import RoIAlign
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import Tensor


@pytest.fixture
def cfg(tiny_config: Path, tmp_path: Path) -> Config:
    """Two steps of two images, without validation."""
    config = Config.fromfile(tiny_config)
    config.work_dir = str(tmp_path / "work")
    config.train_cfg.max_iters = 2
    config.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    config.param_scheduler = []
    return config


def losses(runner: Runner, name: str = "loss") -> list[float]:
    return [float(value) for value in runner.message_hub.log_scalars[f"train/{name}"].data[0]]


@pytest.mark.parametrize("base", [16, 2])
def test_auto_scale_lr(cfg: Config, base: int) -> None:
    """The learning rate for ``base`` images a step is scaled to the two of the configuration."""
    lr = cfg.optim_wrapper.optimizer.lr
    cfg.auto_scale_lr = dict(enable=True, base_batch_size=base)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert [group["lr"] for group in runner.optim_wrapper.param_groups] == [pytest.approx(lr * 2 / base)]
    assert len(losses(runner)) == 2
    assert all(map(math.isfinite, losses(runner)))


@pytest.fixture
def amp_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine's wrapper insists on a GPU, and mmcv's operators on float32 where there is none: here they get it."""
    place = "mmengine.optim.optimizer.amp_optimizer_wrapper"
    monkeypatch.setattr(f"{place}.is_cuda_available", lambda: True)
    monkeypatch.setattr(f"{place}.GradScaler", partial(torch.amp.GradScaler, "cpu"))


def in_float32(runner: Runner) -> None:
    for module in runner.model.modules():
        if isinstance(module, RoIAlign):
            module.register_forward_pre_hook(lambda _, args: tuple(arg.float() for arg in args))
    head: Any = runner.model.rpn_head
    propose = head.predict_by_feat

    def predict_by_feat(scores: list[Tensor], deltas: list[Tensor], **options: Any) -> Any:
        assert {level.dtype for level in (*scores, *deltas)} == {torch.bfloat16}
        return propose([level.float() for level in scores], [level.float() for level in deltas], **options)

    head.predict_by_feat = predict_by_feat


@pytest.mark.usefixtures("amp_on_cpu")
def test_amp(cfg: Config) -> None:
    """Autocast and loss scaling around the whole detector: losses are float32's to half precision, and all weights move.

    Those of the proposals alone: which ones come out of them, rounding decides.
    """
    cfg.model.backbone.drop_path_rate = 0.0  # random numbers of another dtype are others
    in_full = Runner.from_cfg(cfg.copy())
    in_full.train()
    cfg.optim_wrapper.update(type="AmpOptimWrapper", loss_scale=128.0, dtype="bfloat16")
    cfg.experiment_name = "amp"
    runner = Runner.from_cfg(cfg)  # with the same seed
    in_float32(runner)
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train()
    assert isinstance(runner.optim_wrapper, AmpOptimWrapper)
    for name in ("loss_rpn_cls", "loss_rpn_bbox"):
        # 8 bits of mantissa, through a deep network
        assert losses(runner, name)[0] == pytest.approx(losses(in_full, name)[0], rel=2e-2)
    assert all(map(math.isfinite, losses(runner)))
    moved = {name: p.isfinite().all() and not torch.equal(p, before[name]) for name, p in runner.model.named_parameters()}
    assert all(moved.values()), [name for name, did in moved.items() if not did]
