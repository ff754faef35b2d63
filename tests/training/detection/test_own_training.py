"""Own data from one end to the other: train from scratch for some steps, test, predict, go on. One training for all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from pycocotools.coco import COCO

from tests.conftest import ROOT, RunTool
from tests.training.detection.conftest import FINETUNE, SMALL

CLASSES = ["0", "1", "2", "4", "7"]


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of ``tools/train.py CONFIG --data FOLDER --from-scratch``: one epoch of four steps."""
    work = tmp_path_factory.mktemp("trained")
    command = [
        sys.executable,
        ROOT / "tools/train.py",
        FINETUNE,
        "--data",
        tiny_data,
        "--work-dir",
        work,
        "--from-scratch",
        *SMALL,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return work


def test_training_has_the_datas_classes_and_validates(trained: Path) -> None:
    content = torch.load(trained / "epoch_1.pth", weights_only=False)
    assert list(content["meta"]["dataset_meta"]["classes"]) == CLASSES
    assert content["state_dict"]["roi_head.bbox_head.fc_cls.weight"].shape[0] == len(CLASSES) + 1
    assert content["state_dict"]["roi_head.mask_head.conv_logits.weight"].shape[0] == len(CLASSES)
    (scalars,) = trained.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert len(losses) == 4
    assert all(np.isfinite(line["loss"]) and line["loss_mask"] > 0 for line in losses)
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= lines[-1].keys()


def test_test_writes_metrics_and_predictions(trained: Path, tiny_data: Path, tmp_path: Path, run_tool: RunTool) -> None:
    checkpoint = trained / "epoch_1.pth"
    assert run_tool("test.py", FINETUNE, checkpoint, "--data", tiny_data, "--work-dir", tmp_path, *SMALL) == 0
    content = json.loads((tmp_path / "test/metrics.json").read_text())
    assert content["checkpoint"] == str(checkpoint)
    (scalars,) = trained.glob("*/vis_data/scalars.json")
    reported = json.loads(scalars.read_text().splitlines()[-1])
    assert content["metrics"] == {key: value for key, value in reported.items() if key.startswith("coco/")}
    ground_truth = COCO(str(tiny_data / "annotations/val.json"))
    for kind in ("bbox", "segm"):
        predictions = json.loads((tmp_path / f"test/predictions.{kind}.json").read_text())
        assert len(predictions) == 20  # ten an image: from scratch, nothing is certain
        assert ground_truth.loadRes(predictions)


def test_another_checkpoint_is_refused(
    trained: Path, tiny_data: Path, tmp_path: Path, run_tool: RunTool, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained / "epoch_1.pth", weights_only=False)
    content["state_dict"] = {key: value for key, value in content["state_dict"].items() if not key.startswith("neck.")}
    torch.save(content, tmp_path / "other.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    for name, message in (
        ("other.pth", "other.pth does not fit the model: 12 missing keys: neck.reduction_conv.conv.weight, "),
        ("weights.pth", "weights.pth is no checkpoint of a detector's training: it has no state_dict"),
        ("none.pth", "checkpoint not found: "),
    ):
        assert run_tool("test.py", FINETUNE, tmp_path / name, "--data", tiny_data, "--work-dir", tmp_path, *SMALL) == 2
        assert message in capsys.readouterr().err
        arguments = ("--config", FINETUNE, "--checkpoint", tmp_path / name, "--out", tmp_path / "out")
        assert run_tool("predict.py", tiny_data / "val", *arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "test/metrics.json").exists()
    assert not (tmp_path / "out").exists()


def test_prediction_has_the_checkpoints_classes(trained: Path, tiny_data: Path, tmp_path: Path, run_tool: RunTool) -> None:
    """The config says nothing of them."""
    arguments = ("--config", FINETUNE, "--checkpoint", trained / "epoch_1.pth", "--out", tmp_path, "--score-threshold", 0)
    assert run_tool("predict.py", tiny_data / "val", *arguments, *SMALL) == 0
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert [category["name"] for category in content["categories"]] == CLASSES
    assert len(content["images"]) == 2
    assert len(content["annotations"]) == 20
    assert all("segmentation" in annotation for annotation in content["annotations"])


def test_mmdetections_inferencer_takes_the_config_that_the_training_wrote(trained: Path, tiny_data: Path) -> None:
    config, checkpoint = trained / FINETUNE.name, trained / "epoch_1.pth"
    inferencer = DetInferencer(str(config), str(checkpoint), device="cpu", show_progress=False)
    assert list(inferencer.model.dataset_meta["classes"]) == CLASSES
    (found,) = inferencer(str(tiny_data / "val/000000.jpg"), out_dir="")["predictions"]
    assert len(found["bboxes"]) == len(found["masks"]) == 10


def test_test_takes_the_weights_that_it_is_given(trained: Path, tiny_data: Path, tmp_path: Path, run_tool: RunTool) -> None:
    """Metrics do not tell: after so few steps those of any weights are zero."""
    content = torch.load(trained / "epoch_1.pth", weights_only=False)
    content["state_dict"]["roi_head.bbox_head.fc_cls.bias"][2] += 100
    torch.save(content, tmp_path / "sure.pth")
    assert run_tool("test.py", FINETUNE, tmp_path / "sure.pth", "--data", tiny_data, "--work-dir", tmp_path, *SMALL) == 0
    predictions = json.loads((tmp_path / "test/predictions.bbox.json").read_text())
    (wanted,) = COCO(str(tiny_data / "annotations/val.json")).getCatIds(catNms=[CLASSES[2]])
    assert {prediction["category_id"] for prediction in predictions} == {wanted}
    assert min(prediction["score"] for prediction in predictions) > 0.99
