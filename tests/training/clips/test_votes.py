"""Votes on clips, soft labels of them, and a training on these: by the tools and the recipe, as a user would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

pytest.importorskip("crowdkit")
pytest.importorskip("av")

from revbifpn.datasets.moving_digits import MovingDigits, make_moving_digits
from revbifpn.training.clips import ClipRecognizer
from tests.conftest import ROOT, RunTool

RECIPE = ROOT / "configs/video/revbifpn-s0_moving-digits_16f.py"
LEVELS = ("0", "1", "2", "3")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight training clips whose table names no labels; three annotators voted on seven of them, and nobody said level 3."""
    folder = tmp_path / "data"
    make_moving_digits(folder, MovingDigits(num_train=8, num_val=4))
    names = [f"train/{number:05d}.avi" for number in range(8)]
    (folder / "train.csv").write_text("\n".join(["path", *names]) + "\n")
    votes = ["task,worker,label"]
    for number, name in enumerate(names[:7]):
        level = min(number % 4, 2)
        said = {"anna": level, "bert": level, "carl": (level + number) % 3}
        votes += [f"{name},{worker},{label}" for worker, label in said.items()]
    (folder / "votes.csv").write_text("\n".join(votes) + "\n")
    return folder


@pytest.mark.parametrize("method", ["majority", "dawid-skene", "k-rbm"])
def test_soft_labels_reach_the_loss(
    data: Path, tmp_path: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Each clip is trained with its own row of ``--soft``; the clip without votes is left out; true labels are scored."""
    targets: dict[int, torch.Tensor] = {}
    plain = ClipRecognizer.forward

    def watched(self: ClipRecognizer, *args: Any, mode: str = "tensor", **batch: Any) -> Any:
        if mode == "loss":
            targets.update(zip(batch["indices"].tolist(), batch["labels"]["speed"], strict=True))
        return plain(self, *args, mode=mode, **batch)

    monkeypatch.setattr(ClipRecognizer, "forward", watched)
    files = ("--out", data / "labels.csv", "--soft", data / "soft.csv")
    assert run_tool("aggregate_votes.py", data / "votes.csv", "--method", method, "--classes", *LEVELS, *files) == 0
    settings = ("train_cfg.max_epochs=1", "train_dataloader.dataset.soft_labels.speed=soft.csv")
    work = ("--work-dir", tmp_path / "work")
    assert run_tool("train.py", RECIPE, "--data", data, *work, "--cfg-options", *settings) == 0

    soft = pd.read_csv(data / "soft.csv", index_col="task")[list(LEVELS)]
    assert soft.nunique().max() > 1  # no row is every clip's
    assert sorted(targets) == list(range(7))
    for place, name in enumerate(soft.index):
        expected = torch.tensor(soft.loc[name].to_numpy(), dtype=torch.float32)
        torch.testing.assert_close(targets[place], expected)  # rows are made to sum to 1 once more: a rounding
    log = next((tmp_path / "work").glob("*/*.log")).read_text()
    assert "train: 7 clips with labels; 1 without a label left out: train/00007.avi" in log
    (scalars,) = (tmp_path / "work").glob("*/vis_data/scalars.json")
    scores = [record for line in scalars.read_text().splitlines() if "speed/top1" in (record := json.loads(line))]
    assert [record["speed/clips"] for record in scores] == [4]
    assert scores[0]["speed/floor_top1"] == 25  # of val.csv's levels, one clip each
