"""Trainings that are killed, each at a chosen point, and resumed: they end as one that was not killed, bit for bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.image_folders import make_image_folder
from tests.training.classification.conftest import write_config

ROOT = Path(__file__).parents[2]
DEMO_CONFIG = ROOT / "configs" / "demo" / "mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py"

#: Dropout, stochastic depth, an average of the weights, bfloat16 and accumulated gradients, which an
#: epoch of 3 steps ends in the middle of. A new best score has MMEngine write the last checkpoint again, in a validation.
CLASSIFIER = """
model.update(model_args=dict(drop_rate=0.3, drop_path_rate=0.2))
train_cfg.update(max_epochs=3)
optim_wrapper.update(type="AutocastOptimWrapper", dtype="bfloat16", accumulative_counts=2)
default_hooks["checkpoint"].update(max_keep_ckpts=1, save_best="accuracy/loss", rule="less")
"""
#: Sampled RoIs, stochastic depth, an average of the weights and accumulated gradients; a checkpoint every second step,
#: and with the best score at the third one, in the middle of an accumulation.
DETECTOR = """
_base_ = "{base}"
model = dict(backbone=dict(drop_path_rate=0.2))
train_cfg = dict(max_iters=4, val_interval=3)
train_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(data_root="{data}/"))
val_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(data_root="{data}/"))
val_evaluator = dict(ann_file="{data}/annotations/val.json")
test_dataloader = val_dataloader
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=1, save_best="coco/bbox_mAP", rule="greater"))
optim_wrapper = dict(accumulative_counts=2)
custom_hooks = [
    dict(type="NonFiniteLossHook", action="stop"),
    dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.2, update_buffers=True),
    dict(type="ExactResumeHook"),
]
randomness = dict(seed=0, deterministic=True)
"""
#: Steps, validations, and files that are written (checkpoints, best ones, and checkpoints written again). With accumulation
#: every second step has an update.
POINTS = {
    "classifier": {"forward": (1, 9), "backward": (1, 9), "update": (1, 4), "validation": (1, 3), "write": (1, 5)},
    "detector": {"forward": (1, 4), "backward": (1, 4), "update": (1, 2), "validation": (1, 1), "write": (1, 4)},
}
#: Those of the default suite, all after the first checkpoint.
FIXED: dict[str, list[dict[str, Any]]] = {
    "classifier": [
        {"where": "backward", "step": 6},
        {"where": "write", "step": 3, "fraction": 0.0},  # the first checkpoint, written again after its validation
        {"where": "write", "step": 4, "fraction": 0.5},  # the second one, which the first makes room for
        {"where": "validation", "step": 2},
    ],
    "detector": [{"where": "write", "step": 4, "fraction": 0.9}],
}
NUMBER = 20


def kills(name: str, long: bool) -> list[dict[str, Any]]:
    """Where a training is killed: at fixed points, and in the long form at random ones, the same in every run."""
    chance, found = random.Random(name), list(FIXED[name])
    while long and len(found) < NUMBER // 2:
        where = chance.choice(list(POINTS[name]))
        step = chance.randint(*POINTS[name][where]) * (2 if where == "update" else 1)
        found.append({"where": where, "step": step} | ({"fraction": chance.random()} if where == "write" else {}))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, long: bool) -> dict[str, list[dict[str, Any]]]:
    """What came of each kill; one process starts all the trainings."""
    folder = tmp_path_factory.mktemp("kills")
    classifier, detector = folder / "classifier.py", folder / "detector.py"
    model = "revbifpn_s0" if long else "test_resnet"
    write_config(classifier, make_image_folder(folder / "images"), folder / "work", model, CLASSIFIER)
    detector.write_text(DETECTOR.format(base=DEMO_CONFIG.as_posix(), data=tiny_data.as_posix()))
    trainings = {name: {"config": str(folder / f"{name}.py"), "kills": kills(name, long)} for name in POINTS}
    (folder / "trainings.json").write_text(json.dumps(trainings))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.training._killed", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1800 if long else 280)
    assert done.returncode == 0, done.stderr[-5000:]
    found: dict[str, list[dict[str, Any]]] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("name", POINTS)
def test_a_killed_training_ends_as_one_that_was_not(results: dict[str, list[dict[str, Any]]], name: str, long: bool) -> None:
    """With what EMA, autocast, accumulation, optimizer, schedule and random numbers need; always from a usable checkpoint."""
    wanted = kills(name, long)
    assert len(results[name]) == len(wanted)
    for kill, found in zip(wanted, results[name], strict=True):
        log = found.pop("log")
        said = f"{kill}: {found}\n{log[-3000:]}"
        assert found["killed"], said
        assert not found["finished"], said
        assert bool(found["usable"]) == bool(found["written"]), said  # whatever was in the middle of being written
        assert ("going on from" in log) == bool(found["usable"]), said
        assert found["resumed"] == 0, said
        assert found["last"] == {"classifier": "epoch_3.pth", "detector": "iter_4.pth"}[name], said
        assert not found["different"], said
