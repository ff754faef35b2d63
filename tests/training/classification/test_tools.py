"""The command lines: errors before the first step, and neither mmcv nor mmdet."""

from __future__ import annotations

import hashlib
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from revbifpn.models.published_weights import PUBLISHED
from tests.conftest import ROOT, RunTool
from tests.oracle import reference_state_dict
from tests.training.classification.conftest import Refusal, write_config

WITHOUT_MMCV = """
import runpy, sys
sys.modules["mmcv"] = sys.modules["mmdet"] = None  # importing them fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(tool: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a tool in a process in which mmcv and mmdet cannot be imported."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_MMCV, str(ROOT / "tools" / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=300)


@pytest.fixture
def config(own_folder: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.py", own_folder, tmp_path / "work")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file with the weights of a model of 7 classes."""
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), path)
    return path


def test_train_then_test_without_mmcv(config: Path, tmp_path: Path) -> None:
    """The checkpoint's accuracy is the one that the training reported; another model does not go on from it."""
    trained = run("train.py", config, "--cfg-options", "train_cfg.max_epochs=1")
    assert trained.returncode == 0, trained.stderr[-3000:]
    (reported,) = [line for line in trained.stdout.splitlines() if "accuracy/top1" in line]
    tested = run("test.py", config, tmp_path / "work/epoch_1.pth", "--work-dir", tmp_path / "test")
    assert tested.returncode == 0, tested.stderr[-3000:]
    (measured,) = [line for line in tested.stdout.splitlines() if "accuracy/top1" in line]
    for name in ("top1", "top2", "loss"):
        value = measured.split(f"accuracy/{name}: ")[1].split()[0]
        assert f"accuracy/{name}: {value}" in reported

    other = run("train.py", config, "--resume", "--cfg-options", "model.name=test_efficientnet")
    assert other.returncode == 2
    assert "epoch_1.pth of --resume does not fit the model" in other.stderr
    assert "Traceback" not in other.stderr
    assert "Epoch(train)" not in other.stdout


def test_resuming_passes_over_a_damaged_checkpoint(
    config: Path, tmp_path: Path, run_tool: RunTool, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on from the one before, and ends with the weights of a training that nothing happened to."""
    assert run_tool("train.py", config) == 0
    first, last = (tmp_path / f"work/epoch_{epoch}.pth" for epoch in (1, 2))
    undamaged = torch.load(last, weights_only=False)["state_dict"]
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0x10
    last.write_bytes(content)
    capsys.readouterr()
    assert run_tool("train.py", config, "--resume") == 0
    said = capsys.readouterr().err
    assert f"refused: {last} is damaged" in said
    assert f"going on from {first}" in said
    again = torch.load(last, weights_only=False)["state_dict"]
    assert again.keys() == undamaged.keys()
    assert all(torch.equal(value, undamaged[key]) for key, value in again.items())


def test_faults_are_named_before_the_first_step(
    config: Path, weights: Path, own_folder: Path, tmp_path: Path, refusal: Refusal
) -> None:
    def refused(*arguments: object, tool: str = "train.py") -> str:
        return refusal(tool, config, *arguments)

    said = refused("--data", tmp_path / "nowhere")
    assert said.startswith("train: data set of train_dataloader not found: ")
    assert "nowhere does not exist" in said
    assert "nowhere/train/<class>/<image>" in said
    said = refused("--cfg-options", "model.num_classes=4")
    assert "has 3 classes, the model 4" in said
    assert "model.num_classes=3" in said
    assert f"checkpoint not found: {tmp_path / 'epoch_7.pth'}" in refused("--resume", tmp_path / "epoch_7.pth")
    assert "weights.pth is no checkpoint of a training" in refused("--resume", weights)
    assert "weights.pth has 7 classes, the model 3. Nothing was loaded" in refused(weights, tool="test.py")
    assert "--show-dir is for detection" in refused(weights, "--show-dir", tmp_path / "show", tool="test.py")
    shutil.rmtree(own_folder / "val/red")
    said = refused()
    assert "class folders of train and val differ" in said
    assert "has red" in said
    for path in (own_folder / "train/green").iterdir():
        path.unlink()
    assert "train has class folders without images: green. Fill them" in refused()
    shutil.rmtree(own_folder / "val")
    assert "data/val does not exist" in refused()
    assert not list((tmp_path / "work").glob("*/vis_data/scalars.json"))


def test_options_that_do_not_go_with_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    detector = tmp_path / "detector.py"
    detector.write_text('model = dict(type="MaskRCNN")\noptim_wrapper = dict(type="OptimWrapper")\n')
    assert "--amp needs a GPU to train a detector" in refusal("train.py", detector, "--amp")


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_ends_the_training_by_name(config: Path, own_folder: Path, refusal: Refusal, workers: int) -> None:
    (own_folder / "train/red/2.png").write_bytes(b"broken")
    said = refusal("train.py", config, "--cfg-options", f"train_dataloader.num_workers={workers}")
    assert said.startswith(f"train: image {own_folder}/train/red/2.png (index 10) cannot be decoded")
    assert "on_error='skip'" in said
    assert "Traceback" not in said


class TestFineTuning:
    """``train.py configs/finetune/... --data FOLDER`` and a file of weights: nothing else has to be given."""

    CONFIG = ROOT / "configs/finetune/revbifpn-s0_finetune.py"
    # On a CPU in seconds.
    SMALL = (
        "--cfg-options",
        "train_cfg.max_epochs=1",
        *(
            f"{loader}_dataloader.{option}"
            for loader in ("train", "val")
            for option in ("num_workers=0", "persistent_workers=False")
        ),
        "train_dataloader.dataset.transform.input_size=64",
        "val_dataloader.dataset.transform.input_size=64",
    )

    def test_missing_weights_come_with_address_sha256_and_options(self, image_folder: Path, refusal: Refusal) -> None:
        said = refusal("train.py", self.CONFIG, "--data", image_folder)
        published = PUBLISHED["s0"]
        assert said == (
            f"train: checkpoint not found: revbifpn_s0.pth.tar. It is published at {published.url} (sha256 "
            f"{published.sha256}); that address may be named instead. Put the file there, or name another with --cfg-options "
            "model.checkpoint=FILE; --from-scratch begins without weights"
        )

    def test_with_weights(self, image_folder: Path, tmp_path: Path) -> None:
        torch.save(reference_state_dict("revbifpn_s0"), tmp_path / "revbifpn_s0.pth.tar")
        done = run("train.py", self.CONFIG, "--data", image_folder, *self.SMALL, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "revbifpn_s0.pth.tar has 1000 classes, the model 3: the classifier is a fresh one" in done.stdout + done.stderr
        state = torch.load(tmp_path / "work_dirs/revbifpn-s0_finetune/epoch_1.pth", weights_only=False)["state_dict"]
        assert state["backbone.head.fc.weight"].shape == (3, 1280)

    def test_from_scratch(self, image_folder: Path, tmp_path: Path) -> None:
        done = run("train.py", self.CONFIG, "--data", image_folder, "--from-scratch", *self.SMALL, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        state = torch.load(tmp_path / "work_dirs/revbifpn-s0_finetune/epoch_1.pth", weights_only=False)["state_dict"]
        norms = {int(value) for key, value in state.items() if key.endswith("num_batches_tracked")}
        assert norms == {1}  # twelve images, one step: the norms learn their statistics


def test_validate_prints_accuracy_and_file(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a file in the published layout that always says: class 0, then 1, then 2, and so on; its raw weights the reverse."""
    path = tmp_path / "revbifpn_s0.pth.tar"
    state = reference_state_dict("revbifpn_s0")
    state["head.fc.weight"] = torch.zeros_like(state["head.fc.weight"])
    state["head.fc.bias"] = -torch.arange(1000.0)
    reverse = state | {"head.fc.bias": torch.arange(1000.0)}
    torch.save({"state_dict": reverse, "state_dict_ema": state}, path)
    for index in range(1000):
        folder = tmp_path / "data/val" / f"n{index:04d}"
        folder.mkdir(parents=True)
        for number in range(3 if index < 2 else 1):
            (folder / f"{number}.png").symlink_to(image_folder / "val/red" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    options = ["--input-size", 32, "--workers", 0, "--batch-size", 100]
    monkeypatch.setattr(sys, "argv", ["validate.py", "--checkpoint", path.name, "--data", "data", *map(str, options)])
    runpy.run_path(str(ROOT / "tools/validate.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert f"sha256:     {hashlib.sha256(path.read_bytes()).hexdigest()}" in printed
    assert "(not the published file, whose sha256 is a9ee012a2670003e" in printed
    assert "images:     1004\n" in printed
    assert f"top-1:      {100 * 3 / 1004:.2f} % (paper: 72.8 on ImageNet-1k)" in printed
    assert f"top-5:      {100 * 9 / 1004:.2f} %" in printed
    sys.argv.append("--raw-weights")
    runpy.run_path(str(ROOT / "tools/validate.py"), run_name="__main__")
    assert f"top-1:      {100 * 1 / 1004:.2f} % (paper" in capsys.readouterr().out


def test_validate_names_what_is_wrong(
    tmp_path: Path, weights: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(*arguments: object) -> str:
        return refusal("validate.py", "--data", image_folder, "--checkpoint", *arguments)

    assert "none.pth.tar" in refused("none.pth.tar")
    assert "has 3 classes, the model 1000" in refused(weights)
    assert "weights.pth does not fit the model" in refused(weights, "--model", "test_vit", "--num-classes", "3")
    (tmp_path / "bad.pth.tar").write_text("no weights")
    assert "bad.pth.tar is no checkpoint" in refused("bad.pth.tar", "--num-classes", "3")
    assert "timm knows no model 'none'" in refused(weights, "--model", "none")
    diverged = timm.create_model("test_resnet", num_classes=3).state_dict() | {"fc.bias": torch.full((3,), torch.inf)}
    torch.save(diverged, weights)
    said = refused(weights, "--model", "test_resnet", "--num-classes", "3")
    assert "weights.pth has values that are NaN or infinite, in 1 tensors: fc.bias" in said
