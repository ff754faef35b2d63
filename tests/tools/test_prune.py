"""The pruning tool on a tiny image folder."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch

from revbifpn.models.checkpoints import read
from revbifpn.sparsity.compact import read_masks
from revbifpn.sparsity.distribution import count_zeros

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["prune.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "tools/prune.py"), run_name="__main__")


def test_prunes_trains_on_and_writes(
    checkpoint: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "pruned.safetensors"
    images = ("--input-size", 32, "--workers", 0, "--batch-size", 4, "--calibration-images", 8)
    training = ("--epochs", 2, "--lr", 1e-3, "--train-batch-size", 4, "--distill")
    base = ("--model", "test_resnet", "--checkpoint", checkpoint, "--data", image_folder)
    run(monkeypatch, *base, "--sparsity", 0.6, "--output", target, *images, *training)
    text = capsys.readouterr().out
    found = json.loads(target.with_suffix(".json").read_text())
    assert f"{found['before']:.2f} % dense, {found['after']:.2f} % pruned, on 9 images" in text
    assert f"{found['trained']:.2f} % trained on" in text
    assert (found["calibration"], found["images"], found["sparsity"], found["method"]) == (8, 9, "60%", "sparsegpt")
    assert f"{found['bytes']['compact']:,} bytes of tensors instead of {found['bytes']['dense']:,}" in text
    assert found["bytes"]["compact"] < found["bytes"]["dense"]
    masks, state = read_masks(target), read(target).state_dict
    for layer in found["layers"]:
        weight = state[layer["name"]]
        assert layer["zeros"] == count_zeros(weight.numel(), 0.6) == int((weight == 0).sum())
        assert not weight[~masks[layer["name"]]].any()
        assert f"| {layer['name']} | " in text
    before = torch.load(checkpoint)
    assert not torch.equal(state["fc.weight"], before["fc.weight"])  # it was trained on

    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *base, "--output", target, *images)
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("pruned.safetensors, exists (--overwrite replaces it)\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sparsity", "1.5"), "sparsity is the fraction of zeros, at least 0 and less than 1, got 1.5"),
        (("--sparsity", "1"), "at 1 no weight would be left"),
        (("--dense", "layer9*"), "the pattern 'layer9*' for what stays dense matches no parameter"),
        (("--model", "resnet"), "timm knows no model 'resnet'"),
        (("--train-split", "none"), "has no folder for split 'none'"),
        (("--data", "no/folder"), "no/folder is no folder: expected no/folder/val/<class>/<image>"),
        (("--calibration-images", "1"), "calibration needs at least 2 images"),
        (("--output", "x.pth"), "the file to write, x.pth, must end in .safetensors"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    options: tuple[str, ...],
    message: str,
    checkpoint: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["--model", "test_resnet", "--checkpoint", str(checkpoint), "--data", str(image_folder), "--input-size", "32"]
    target = ["--workers", "0", "--calibration-images", "4", "--output", str(tmp_path / "x.safetensors")]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *base, *target, *options)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("prune: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
