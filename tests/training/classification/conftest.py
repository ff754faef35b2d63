"""A tiny image folder whose classes can be told by their colour, and a config that trains on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from revbifpn.training.runner import build_runner
from tests.conftest import ROOT, RunTool, forget_runs

MakeConfig = Callable[..., Config]
Refusal = Callable[..., str]


CONFIG = """
_base_ = "{base}"
size = 32
num_classes = 3
model = dict(
    type="ImageClassifier",
    name="{model}",
    num_classes=num_classes,
    loss=dict(loss_type="ce", smoothing=0.1),
    data_preprocessor=dict(type="ImagePreprocessor", random_erasing=dict(probability=0.5, mode="pixel")),
)
loader = dict(num_workers=0, persistent_workers=False, collate_fn=dict(type="default_collate"))
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="ClassificationDataset",
        root="{data}",
        split="train",
        num_classes=num_classes,
        training=True,
        transform=dict(input_size=size, auto_augment="rand-m3-mstd0.5"),
    ),
    **loader,
)
val_dataloader = dict(
    batch_size=4,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="ClassificationDataset", root="{data}", split="val", num_classes=num_classes, transform=dict(input_size=size)
    ),
    **loader,
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TopKAccuracy", topk=(1, 2))
test_evaluator = val_evaluator
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(opt="adamw", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=1, end=4, eta_min=1e-5, convert_to_iter_based=True),
]
custom_hooks = [
    dict(type="NonFiniteLossHook", action="stop"),
    dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.2, update_buffers=True),
    dict(type="AverageBuffersHook"),
    dict(type="ExactResumeHook"),
]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=-1, save_best=None))
log_processor = dict(window_size=1)
randomness = dict(seed=0)
work_dir = "{work_dir}"
launcher = "none"
"""


def write_config(path: Path, data: Path, work_dir: Path, model: str = "test_resnet", more: str = "") -> Path:
    """A config file on an image folder; ``more`` is appended."""
    base = ROOT / "configs/_base_/classification_runtime.py"
    path.write_text(CONFIG.format(base=base.as_posix(), model=model, data=data.as_posix(), work_dir=work_dir) + more)
    return path


def fresh_runner(cfg: Config) -> Runner:
    """A Runner that shares nothing with those before it."""
    forget_runs()
    return build_runner(cfg)


@pytest.fixture
def make_config(image_folder: Path, tmp_path: Path) -> MakeConfig:
    """``make_config(model=..., data=..., work_dir=..., **settings)``: a loaded config with settings by dotted key."""

    def make(model: str = "test_resnet", data: Path | None = None, work_dir: Path | None = None, **settings: Any) -> Config:
        path = write_config(tmp_path / "config.py", data or image_folder, work_dir or tmp_path / "work", model)
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(settings)
        return cfg

    return make


@pytest.fixture
def refusal(run_tool: RunTool, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """``refusal(tool, *arguments)``: the one line that a tool says on its way out, with exit status 2."""

    def run(tool: str, *arguments: object) -> str:
        capsys.readouterr()
        assert run_tool(tool, *arguments) == 2
        return capsys.readouterr().err.rstrip("\n").rpartition("\n")[2]

    return run
