"""The throughput tool: what it reports, and bad arguments. Times are not judged."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tools.throughput import measure_throughput

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


def test_the_mode_of_a_name_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is the model that the name means, in the mode that it says."""
    import tools.throughput

    timed: list[Any] = []
    monkeypatch.setattr(tools.throughput, "_seconds", lambda step, device: timed.append(step.__self__.model) or 1.0)
    tiny = "tests.memory.conftest:make_tiny"
    names = [f"{tiny}:exact", f"{tiny}:stored", tiny, "test_resnet:checkpointing", "test_resnet"]
    results = measure_throughput(names, batch_size=2, image_size=32, repeats=1)
    assert [result.model for result in results] == names
    exact, stored, usual, checkpointing, plain = (timed[2 * index] for index in range(5))
    assert (exact.body.reversible, exact.body.exact_bits is None) == (True, False)
    assert (stored.body.reversible, stored.body.exact_bits) == (False, None)
    assert (usual.body.reversible, usual.body.exact_bits) == (True, None)
    assert (checkpointing.grad_checkpointing, plain.grad_checkpointing) == (True, False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "unknown model 'none'"),
        ("resnet18:exact", "resnet18 has no mode 'exact': choose from stored, checkpointing"),
        ("revbifpn_s0:x", "revbifpn_s0:x: unknown mode 'x': choose from reversible, exact, stored"),
        (
            "configs/fashion_mnist/revbifpn-s0_fashion-mnist.py",
            "fashion-mnist.py cannot be timed: it is not called with a batch",
        ),
    ],
)
def test_what_cannot_be_timed_is_named(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=message):
        measure_throughput([name])


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
