"""Two gloo processes train and validate a classifier to the same numbers as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor

from revbifpn.training.checkpoints import use_checkpoint
from tests.image_folders import make_image_folder
from tests.training.classification.conftest import fresh_runner, write_config

from ._processes import LAUNCHER, ROOT, run_all

# Losses and gradients are sums of the same numbers in another order.
TOLERANCE = 2e-5

# Random erasing draws from each process's own random state; everything else about a sample depends on its index.
MORE = """
model.update(data_preprocessor=dict(type="ImagePreprocessor"))
train_dataloader.update(batch_size={batch_size})
val_dataloader.update(batch_size=2)
"""
# Batch norms see the images of their own process; with the statistics held, RevBiFPN itself has to come out equal.
MORE_FOR = {
    "revbifpn_s0": """
model.update(norm_eval=True, model_args=dict(drop_rate=0.0))
optim_wrapper.update(optimizer=dict(opt="momentum", lr=0.01))
"""
}


def config(folder: Path, model: str, processes: int) -> Path:
    data = folder / "data"
    if not data.exists():
        make_image_folder(data)
    name = f"{model}_{processes}"
    more = MORE.format(batch_size=4 // processes) + MORE_FOR.get(model, "")
    return write_config(folder / f"{name}.py", data, folder / name, model, more)


def launch(path: Path, folder: Path) -> Path:
    """Train in two processes; returns the work folder."""
    train = [str(ROOT / "tools/train.py"), str(path), "--launcher", "pytorch"]
    command = [*LAUNCHER, *train]
    run_all([command], folder, timeout=240, CUDA_VISIBLE_DEVICES="")
    return Path(Config.fromfile(path).work_dir)


def scalars(work_dir: Path) -> list[dict[str, Any]]:
    (path,) = work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(work_dir: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(work_dir / "epoch_2.pth", weights_only=False)["state_dict"]
    return state


@pytest.mark.parametrize("model", [pytest.param("test_convnext", marks=pytest.mark.long), "revbifpn_s0"])
def test_two_processes_equal_one(tmp_path: Path, model: str) -> None:
    """Losses, weights (averaged ones) and validation, of 5 and 4 images; LayerNorm, or held norms: no batch statistics."""
    two = launch(config(tmp_path, model, 2), tmp_path)
    cfg = Config.fromfile(config(tmp_path, model, 1))
    fresh_runner(cfg).train()
    one = Path(cfg.work_dir)

    found = weights(two)
    for key, value in weights(one).items():
        torch.testing.assert_close(found[key], value, rtol=TOLERANCE, atol=TOLERANCE)
    validated = [[r for r in scalars(folder) if "accuracy/top1" in r] for folder in (one, two)]
    assert len(validated[0]) == 2
    for ours, theirs in zip(*validated, strict=True):
        assert theirs["accuracy/images"] == ours["accuracy/images"] == 9
        assert theirs["accuracy/top1"] == ours["accuracy/top1"]
        assert theirs["accuracy/loss"] == pytest.approx(ours["accuracy/loss"], rel=TOLERANCE)
    # The log holds the first process's loss, of its half of each batch; the gradients' norm is that of the whole.
    norms = [[r["grad_norm"] for r in scalars(folder) if "grad_norm" in r] for folder in (one, two)]
    assert len(norms[0]) == 6
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


def test_checkpoint_has_the_accuracy_that_two_processes_reported(tmp_path: Path) -> None:
    """Batch norm: each process has running statistics of its own, until they are averaged, in the EMA weights too."""
    two = launch(config(tmp_path, "test_resnet", 2), tmp_path)
    cfg = Config.fromfile(config(tmp_path, "test_resnet", 1))
    use_checkpoint(cfg, str(two / "epoch_2.pth"))
    metrics = fresh_runner(cfg).test()
    reported = [record for record in scalars(two) if "accuracy/top1" in record][-1]
    for name in ("accuracy/top1", "accuracy/top2", "accuracy/images"):
        assert metrics[name] == reported[name]
    assert metrics["accuracy/loss"] == pytest.approx(reported["accuracy/loss"], rel=1e-6)
