"""What the engine costs beside its operators."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from benchmarks import engine_cost
from tests.benchmarks.conftest import Command


def test_operators_are_counted_in_forward_and_backward() -> None:
    weight = nn.Parameter(torch.ones(2))
    counts = engine_cost.count_dispatched(lambda: (weight * 2).sin().sum().backward())
    assert counts["mul"] == 1 + 1 + 1  # forward, its gradient, and the gradient of sin
    assert counts["sin"] == counts["cos"] == 1
    assert engine_cost.count_aten(lambda: weight.detach().sin()) >= 2


def test_the_command(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    output = command(engine_cost, "--repeats", 1, "--json", path)
    result = json.loads(path.read_text())
    assert set(result["seconds"]) == set(result["operators"]) == set(engine_cost.MODES)
    # The yardstick runs what its layers are: 444 convolutions and 246 norms, and the gradient of each.
    counts = result["operators"]["plain"]["by_name"]
    assert counts["convolution"] == counts["convolution_backward"] == 444
    assert counts["native_batch_norm"] == counts["native_batch_norm_backward"] == 246
    assert all(count["aten"] > count["dispatched"] > 1000 for count in result["operators"].values())
    assert "| reversible |" in output
