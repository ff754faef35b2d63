"""Sparse training's benchmark at toy size, on noise in Fashion-MNIST's format."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks import sparse_training, sparse_trials
from revbifpn.datasets.fashion_mnist import FILES
from tests.benchmarks.conftest import Command


def write_noise(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for images, labels in FILES.values():
        pixels = random.integers(0, 256, (count, 28, 28), np.uint8)
        header = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
        (folder / images).write_bytes(gzip.compress(header + pixels.tobytes()))
        header = struct.pack(">4BI", 0, 0, 8, 1, count)
        (folder / labels).write_bytes(gzip.compress(header + (np.arange(count) % 10).astype(np.uint8).tobytes()))


def test_the_command(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_noise(tmp_path, 260)
    monkeypatch.setattr(sparse_trials, "SPARSITIES", (0.5,))
    monkeypatch.setattr(sparse_training, "SPARSITIES", (0.0, 0.5))
    monkeypatch.setattr(sparse_training, "STAGES", (1, 2))
    path = tmp_path / "results.json"
    small = ["--images", 260, "--epochs", 1, "--seeds", 2, "--width", 4, "--batch", 1, "--side", 64]
    output = command(sparse_training, "--source", tmp_path, "--json", path, "--pictures", tmp_path / "images", *small)
    results = json.loads(path.read_text())
    assert set(results) == {"wide", "spdf", "memory", "recipe"}

    wide = results["wide"]["rows"]
    assert [row["method"] for row in wide] == ["dense", "static", "set", "rigl"]
    assert all(len(row["top1"]) == 2 for row in wide)
    assert all(row["flops"] == pytest.approx(wide[0]["flops"], rel=0.01) for row in wide)
    assert wide[1]["parameters"] > 1.5 * wide[0]["parameters"]

    spdf = results["spdf"]["rows"]
    assert [row["pre_training"] for row in spdf] == ["none", "dense", *["same steps", "same operations"] * 2]
    none, dense, same_steps, same_operations = spdf[:4]
    assert none["steps"] == 0
    assert same_steps["steps"] == dense["steps"]
    assert same_steps["pre_training_flops"] < 0.7 * dense["pre_training_flops"]
    assert same_operations["steps"] >= dense["steps"]

    # Stored activations grow with each stage. Reversible ones do not, but for two vectors a norm: 9% of that at this toy size,
    # 0.8% at 224x224.
    depth = results["memory"]["depth"]
    growth = {mode: peaks[1] - peaks[0] for mode, peaks in depth.items()}
    assert growth["reversible"] < 0.1 * growth["stored"]
    assert len(results["memory"]["rows"]) == 8

    dense_recipe, half, quarter = results["recipe"]["rows"]
    assert dense_recipe["pre_training"] > half["pre_training"] > quarter["pre_training"]
    assert dense_recipe["fine_tuning"] == quarter["fine_tuning"]
    for text in ("| wide for 50%, rigl |", "| 75% zeros, same operations |", "| revbifpn_s0, reversible |", "| 75% | "):
        assert text in output
    for name in ("sparse_ift.png", "sparse_memory.png"):
        assert (tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG")
