"""Lean parts and frozen stages, measured at toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from benchmarks import detection
from tests.benchmarks.conftest import Command


def test_detection(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = detection.mask_rcnn

    def small(variant: str, changes: dict[str, Any]) -> Config:
        cfg = whole(variant, changes)
        cfg.model.train_cfg.rcnn.sampler.num = 16
        cfg.model.train_cfg.rpn_proposal.max_per_img = 50
        cfg.model.roi_head.bbox_head.fc_out_channels = 32
        return cfg

    monkeypatch.setattr(detection, "mask_rcnn", small)
    path = tmp_path / "detection.json"
    output = command(detection, "--lean-variant", "s0", "--side", 64, "--repeats", 1, "--threads", 1, "--json", path)
    result = json.loads(path.read_text())
    lean, plain = result["lean"]["rows"]
    assert lean["peak"] <= plain["peak"]  # weights and their gradients are the peak at this size
    assert result["lean"]["time_ratio"] == lean["seconds"][0] / plain["seconds"][0]
    frozen = result["frozen"]["rows"]
    assert [row["frozen_stages"] for row in frozen] == [0, 1, 2, 3, 4, 5]
    assert frozen[-1]["peak"] < frozen[0]["peak"]
    assert "| frozen_stages: RevBiFPN-S0, 2 images of 64x64 |" in output
    assert "| parts: RevBiFPN-S0, 2 images of 64x64 |" in output
