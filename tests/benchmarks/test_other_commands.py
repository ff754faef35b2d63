"""The benchmarks that README and guides name, at toy size, so that the commands stay right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import exact_reversal, fashion_mnist, macs, memory_prediction
from revbifpn.datasets.fashion_mnist import CLASSES
from tests.benchmarks.conftest import Command
from tests.conftest import ROOT

COMMANDS = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_is_run_by_a_test(name: str) -> None:
    call = re.compile(rf"\bcommand\({name},|\b{name}\.main\(|^from benchmarks\.{name} import .*\bmain\b", re.MULTILINE)
    assert any(call.search(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))


def test_exact_reversal(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_reversal, "DEPTHS", (3,))
    path, picture = tmp_path / "exact.json", tmp_path / "exact.png"
    output = command(exact_reversal, "--quick", "--repeats", 1, "--json", path, "--plot", picture)
    result = json.loads(path.read_text())
    for row in result["growth"]["rows"]:
        if row["mode"] == "exact":
            assert row["gradient_bit_identical"]
        else:
            # Rounding of float32, and of half precision; the latter is what the exact mode is for.
            assert 0 < row["gradient_error"] < (1e-4 if row["precision"] == "float32" else 1)
    assert {row["precision"] for row in result["cost"]["rows"]} == {"float32", "bf16 autocast"}
    assert set(result["forward"]["rows"][0]["level_errors_by_bits"]) == {"10", "13", "16"}
    assert output.count("| revbifpn_s0 |") == 5
    assert picture.stat().st_size < 300_000


def test_fashion_mnist(command: Command, tmp_path: Path) -> None:
    data = tmp_path / "data"
    pixels = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (data / split / name).mkdir(parents=True)
            Image.fromarray(pixels.integers(0, 255, (28, 28), dtype=np.uint8)).save(data / split / name / "0.png")
    path, picture = tmp_path / "fashion.json", tmp_path / "fashion.png"
    options = ("--data", data, "--work-dir", tmp_path / "work", "--json", path, "--picture", picture)
    output = command(fashion_mnist, "--settings", "reversible", "--epochs", 1, *options)
    run = json.loads(path.read_text())["runs"]["reversible"]
    assert run["steps"] == 1
    assert len(run["top1"]) == 1
    assert "| revbifpn_s0, reversible |" in output
    assert picture.is_file()
    assert "finished before" in command(fashion_mnist, "--settings", "reversible", "--epochs", 1, *options)


def test_macs(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(macs, "VARIANTS", {"s0": macs.VARIANTS["s0"]})
    path = tmp_path / "macs.json"
    output = command(macs, "--json", path)
    (row,) = json.loads(path.read_text())
    assert row["macs_published_rules"] == row["macs_published"] == macs.PUBLISHED["s0"]
    assert f"{macs.PUBLISHED['s0']:,}" in output


def test_memory_prediction(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_prediction, "CASES", [("mobilenetv3_small_050", 2, 32)])
    path = tmp_path / "prediction.json"
    output = command(memory_prediction, "--json", path)
    rows = json.loads(path.read_text())["rows"]
    assert [row["mode"] for row in rows] == ["stored", "checkpointing"]
    table = memory_prediction.as_table([rows[0] | {"predicted": 990, "measured": 1000}])
    assert "| mobilenetv3_small_050 | stored | 2, 32 | 1 kB | 990 B | -1.00% |" in table
    assert memory_prediction.as_table(rows) in output
