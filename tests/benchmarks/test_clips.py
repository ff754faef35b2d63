"""The benchmark of clips in toy form: a short training, and memory of a small network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmengine")

from benchmarks import clips


def test_training_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--heads", "mean", "--clips", "8", "--val-clips", "4", "--epochs", "1"]
    small = ["--models", "resnet50", "--frames", "2", "--side", "64"]
    paths = ["--work-dir", tmp_path / "work", "--json", tmp_path / "clips.json", "--pictures", tmp_path / "pictures"]
    monkeypatch.setattr(sys, "argv", ["clips", *short, *small, *map(str, paths)])
    clips.main()
    content = json.loads((tmp_path / "clips.json").read_text())
    run = content["training"]["runs"]["mean"]
    assert run["floor"]["top1"] == 25
    assert len(run["top1"]) == 1
    rows = {row["mode"]: row["bytes"] for row in content["memory"]["rows"]}
    assert 0 < rows["checkpointing"][0] < rows["stored"][0]
    for part in ("training", "memory"):
        assert (tmp_path / f"pictures/clips_{part}.png").read_bytes().startswith(b"\x89PNG")
        assert part in content
    assert "| resnet50, checkpointing |" in capsys.readouterr().out
