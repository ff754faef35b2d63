"""The benchmark of pruning at toy size: a few images that are made here, a few steps."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks import pruning
from revbifpn.datasets.fashion_mnist import FILES
from tests.benchmarks.conftest import Command


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images of ten classes, which differ in where they are bright."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 300), ("val", 500)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 8, 8:20] += 150
        for name, array in zip(FILES[split], (images, labels), strict=True):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (tmp_path / name).write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


def test_pruning(command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "CSR_SPARSITIES", (0.9,))
    monkeypatch.setattr(pruning, "SPARSITIES", (0.5, 0.8))
    monkeypatch.setattr(pruning, "METHODS", ("sparsegpt", "magnitude"))
    monkeypatch.setattr(pruning, "CALIBRATION", 64)
    path = tmp_path / "pruning.json"
    toy = ["--networks", "ResNet, 4 blocks", "--epochs", 1, "--train-on", 1, "--side", 32, "--repeats", 1]
    options = ["--data", data, "--work-dir", tmp_path / "work", "--json", path, *toy]
    output = command(pruning, *options)
    result = json.loads(path.read_text())
    (network,) = result["accuracy"]["networks"]
    rows = {(row["sparsity"], row["method"]): row for row in network["rows"]}
    assert len(rows) == 4
    assert all(0 <= row[key] <= 100 for row in network["rows"] for key in ("plain", "repaired"))
    assert all(row["compact_bytes"] < row["dense_bytes"] for row in network["rows"])
    assert rows[0.8, "sparsegpt"]["zeros"] == rows[0.8, "magnitude"]["zeros"] > rows[0.5, "magnitude"]["zeros"]
    assert {"trained", "distilled"} <= rows[0.8, "sparsegpt"].keys()
    assert f"| {network['dense']:.2f} |" in output
    assert f"came to {rows[0.8, 'sparsegpt']['trained']:.2f}% in 1 epochs" in output
    (timed,) = result["csr"]["rows"]
    assert 0 <= timed["used"] <= timed["layers"]
    assert f"| 90% | {timed['used']} of {timed['layers']} |" in output

    monkeypatch.setattr(pruning, "SPARSITIES", (0.5,))
    again = command(pruning, *options, "--parts", "accuracy")  # trained weights are there
    assert "trained for" in output
    assert "trained for" not in again
    assert json.loads(path.read_text())["csr"] == result["csr"]
