"""The DAiSEE recipe trained and tested with the same tools as everything else, on a tiny tree."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from revbifpn import CheckpointError, RevBiFPN
from revbifpn.training.checkpoints import check_whole_checkpoint, resume_from
from revbifpn.training.checks import check_data
from revbifpn.training.clips import ClipRecognizer
from tests.training.clips.conftest import ROOT, MakeClipConfig, Refusal, fresh_runner

RECIPES = sorted((ROOT / "configs/video").glob("*.py"))


def run_tool(monkeypatch: pytest.MonkeyPatch, tool: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
    runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds(path: Path) -> None:
    cfg = Config.fromfile(path)
    cfg.model.checkpoint = None
    model: Any = MODELS.build(cfg.model)
    optim = build_optim_wrapper(model, cfg.optim_wrapper)
    in_optimizer = {id(param) for group in optim.optimizer.param_groups for param in group["params"]}
    assert in_optimizer == {id(param) for param in model.parameters()}  # heads too
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.frames == cfg.model.frames == 16
        assert loader.dataset.outputs == cfg.model.outputs
    if "daisee" in path.stem:
        splits = [cfg[f"{name}_dataloader"].dataset.split for name in ("train", "val", "test")]
        assert splits == ["Train", "Validation", "Test"]


def test_train_resume_and_test_by_the_tools(
    clip_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, daisee: Path
) -> None:
    """The best epoch on Validation is scored on Test; a resumed run is the run that was not interrupted, bit for bit."""
    work = tmp_path / "work"
    run_tool(monkeypatch, "train.py", clip_config, "--data", daisee)
    log = next(work.glob("*/*.log")).read_text()
    assert "Engagement: clips of each level x their weight: 1 x 1, 1 x 1" in log
    assert "Train: 4 clips with labels; 1 without a label left out: 1100010099; 1 labels without a file left out" in log
    assert "always the most common level in parentheses" in log
    (best,) = work.glob("best_mean_macro_f1_epoch_*.pth")
    run_tool(monkeypatch, "test.py", clip_config, best)
    metrics = json.loads((work / "test/metrics.json").read_text())["metrics"]
    assert metrics["Engagement/clips"] == metrics["Boredom/clips"] == 4
    assert metrics["Engagement/floor_top1"] == 25
    assert metrics.keys() >= {f"mean/{name}" for name in ("top1", "macro_f1", "balanced_accuracy", "mae", "kappa")}

    whole = torch.load(work / "epoch_2.pth", weights_only=False)["state_dict"]
    shutil.move(work / "epoch_1.pth", tmp_path / "epoch_1.pth")
    cfg = Config.fromfile(clip_config)
    cfg.work_dir = str(tmp_path / "again")
    resume_from(cfg, str(tmp_path / "epoch_1.pth"))
    fresh_runner(cfg).train()
    again = torch.load(tmp_path / "again/epoch_2.pth", weights_only=False)["state_dict"]
    assert all(torch.equal(value, again[key]) for key, value in whole.items())

    cfg.model.outputs = dict(Engagement=dict(levels=4, kind="coral"))
    with pytest.raises(CheckpointError, match=r"epoch_2\.pth does not fit the model"):
        check_whole_checkpoint(MODELS.build(cfg.model), str(work / "epoch_2.pth"))


def test_mixed_precision_and_chunks_train(make_clip_config: MakeClipConfig) -> None:
    settings = {"model.norm_eval": True, "model.frame_chunk": 3, "train_cfg.max_epochs": 1}
    cfg = make_clip_config(**settings, **{"optim_wrapper.type": "AutocastOptimWrapper"})
    fresh_runner(cfg).train()


def test_weights_of_images_begin_a_training(tmp_path: Path) -> None:
    """The classifier of the images is left out; the shift takes the weights as they are."""
    torch.manual_seed(0)
    images = RevBiFPN("s0", num_classes=5)
    torch.save({"state_dict": images.state_dict()}, tmp_path / "images.pth")
    clips = ClipRecognizer("revbifpn_s0", {"level": 4}, "shift", frames=2, checkpoint=str(tmp_path / "images.pth"))
    own = clips.network.backbone.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in images.state_dict().items() if not key.startswith("head.fc"))


def test_faults_stop_before_the_first_step(
    clip_config: Path, daisee: Path, tmp_path: Path, refusal: Refusal, make_clip_config: MakeClipConfig
) -> None:
    spoilt = Path(shutil.copytree(daisee, tmp_path / "spoilt"))
    shutil.copytree(spoilt / "DataSet/Train/110001", spoilt / "DataSet/Validation/110001")
    labels = spoilt / "Labels/ValidationLabels.csv"
    labels.write_text(labels.read_text() + "1100010000.avi,0,9,0,0\n")
    line = refusal("train.py", clip_config, "--data", spoilt)
    assert line.startswith("train: the clips cannot be used as they are: ")
    assert "Engagement=9 of 1100010000 (ValidationLabels.csv, line 6)" in line
    assert "users in two splits: 110001 (Train, Validation)" in line
    assert "DAiSEE not found" in refusal("train.py", clip_config, "--data", tmp_path / "nowhere")
    assert not (tmp_path / "work").exists()
    for settings, message in (
        ({"val_dataloader.dataset.frames": 5}, "model.frames is 4, the data set of val_dataloader takes frames=5"),
        ({"val_dataloader.dataset.frames": None}, "the data set of val_dataloader says no frames"),
        ({"train_dataloader.dataset.outputs.Boredom.levels": 3}, "the data set of train_dataloader .*: they must be the same"),
    ):
        with pytest.raises(ValueError, match=message):
            check_data(make_clip_config(**settings), "train_dataloader", "val_dataloader")


def test_a_clip_that_cannot_be_decoded_stops_the_run_by_name(
    clip_config: Path, daisee: Path, tmp_path: Path, refusal: Refusal
) -> None:
    spoilt = Path(shutil.copytree(daisee, tmp_path / "spoilt"))
    for path in (spoilt / "DataSet/Train").rglob("*.avi"):
        path.write_text("no video")
    line = refusal("train.py", clip_config, "--data", spoilt)
    assert line.startswith("train: 11 clips in a row cannot be decoded, the last: clip ")
