"""Command lines of detection, run in this process: starting one takes seconds."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

ROOT = Path(__file__).parents[3]
FINETUNE = ROOT / "configs/finetune/mask-rcnn_revbifpn-s0_finetune.py"

#: On a CPU in seconds.
SMALL = (
    "--cfg-options",
    "train_cfg.max_epochs=1",
    "default_hooks.logger.interval=1",
    "model.test_cfg.rcnn.max_per_img=10",
    "train_dataloader.dataset.pipeline.2.scale=(64,64)",
    *(f"{name}_dataloader.dataset.pipeline.1.scale=(64,64)" for name in ("val", "test")),
    *(
        f"{name}_dataloader.{option}"
        for name in ("train", "val", "test")
        for option in ("num_workers=0", "persistent_workers=False", "batch_size=2")
    ),
)

RunTool = Callable[..., int]


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch) -> RunTool:
    """``run_tool(name, *arguments)``: the exit status of a tool; nothing is shared with those that ran before."""

    def run(name: str, *arguments: object) -> int:
        for kind in (Visualizer, MMLogger, MessageHub, DefaultScope):
            kind._instance_dict.clear()
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run
