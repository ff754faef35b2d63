"""The throughput tool: what it reports, and bad arguments. Times are not judged."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch

from tools.throughput import MODES, create, measure_throughput

ROOT = Path(__file__).parents[2]


def test_reports_every_model() -> None:
    names = ["revbifpn_s0:stored", "revbifpn_s0", "test_resnet"]
    stored, reversible, resnet = measure_throughput(names, batch_size=4, image_size=64, repeats=1)
    for result, name in zip((stored, reversible, resnet), names, strict=True):
        model = timm.create_model(name.partition(":")[0])
        assert result.model == name
        assert result.parameters == sum(p.numel() for p in model.parameters())
        assert (result.batch, result.image) == (4, 64)
        assert result.train > 0
        assert result.infer > 0
        # weights, their gradients and momentum in training; weights alone in inference
        assert result.train_memory > 3 * 4 * result.parameters
        assert 4 * result.parameters < result.infer_memory < result.train_memory
    assert reversible.train_memory < stored.train_memory
    assert reversible.infer_memory == stored.infer_memory


def test_modes_reach_the_model() -> None:
    for mode, settings in MODES.items():
        model = create(f"revbifpn_s0:{mode}")
        assert model.body.reversible is settings["reversible"]
        assert (model.body.exact_bits is not None) is settings.get("exact", False)


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "timm knows no model 'none'"), ("resnet18:exact", "only revbifpn"), ("revbifpn_s0:x", "modes")],
)
def test_unknown_models_and_modes_are_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name)


def test_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU is there"):
        measure_throughput(["test_resnet"], device="cuda")


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    options = ["--batch-size", "2", "--image-size", "64", "--device", "cpu", "--repeats", "1", "--amp", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["throughput.py", "test_resnet", *options])
    runpy.run_path(str(ROOT / "tools/throughput.py"), run_name="__main__")
    (figures,) = json.loads(path.read_text())
    assert f"| test_resnet | {figures['parameters'] / 1e6:.2f} | 64 |" in capsys.readouterr().out
