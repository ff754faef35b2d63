"""A tiny tree in DAiSEE's layout, and the DAiSEE recipe on it with a tiny network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from tests.conftest import ROOT
from tests.datasets.daisee_tree import make_daisee
from tests.training.classification.conftest import Refusal, fresh_runner, refusal

__all__ = ["Refusal", "fresh_runner", "refusal"]

RECIPE = ROOT / "configs/video/revbifpn-s0_daisee_16f.py"
MakeClipConfig = Callable[..., Config]

TINY = """
_base_ = "{recipe}"
frames = 4
outputs = dict(Boredom=dict(levels=4, kind="corn"), Engagement=dict(levels=4, kind="nominal"))
model = dict(
    name="test_resnet",
    outputs=dict(_delete_=True, **outputs),
    temporal="transformer",
    temporal_args=dict(width=16, depth=1),
    frames=frames,
    norm_eval=False,
    checkpoint=None,
)
data = dict(root="{data}", outputs=dict(_delete_=True, **outputs), frames=frames)
loader = dict(batch_size=2, num_workers=0, persistent_workers=False, pin_memory=False)
still = [dict(type="Resize", size=(32, 32))]
train_dataloader = dict(
    dataset=dict(
        transform=[dict(type="RandomResizedCrop", size=(32, 32), scale=(0.8, 1.0)), dict(type="RandomHorizontalFlip")], **data
    ),
    **loader,
)
val_dataloader = dict(dataset=dict(transform=still, **data), **loader)
test_dataloader = dict(dataset=dict(transform=still, **data), **loader)
val_evaluator = dict(outputs=dict(_delete_=True, **outputs))
test_evaluator = dict(outputs=dict(_delete_=True, **outputs))
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=-1))
work_dir = "{work_dir}"
launcher = "none"
"""


@pytest.fixture(scope="session")
def daisee(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_daisee(tmp_path_factory.mktemp("daisee") / "DAiSEE")


@pytest.fixture
def clip_config(daisee: Path, tmp_path: Path) -> Path:
    """The file of a config."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY.format(recipe=RECIPE.as_posix(), data=daisee.as_posix(), work_dir=(tmp_path / "work").as_posix()))
    return path


@pytest.fixture
def make_clip_config(clip_config: Path) -> MakeClipConfig:
    """``make_clip_config(**settings)``: the loaded config with settings by dotted key."""

    def make(**settings: Any) -> Config:
        cfg = Config.fromfile(clip_config)
        cfg.merge_from_dict(settings)
        return cfg

    return make
