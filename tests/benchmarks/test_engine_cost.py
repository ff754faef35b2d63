"""What the engine costs beside its operators."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import engine_cost


def test_operators_are_counted_in_forward_and_backward() -> None:
    weight = nn.Parameter(torch.ones(2))
    counts = engine_cost.count_dispatched(lambda: (weight * 2).sin().sum().backward())
    assert counts["mul"] == 1 + 1 + 1  # forward, its gradient, and the gradient of sin
    assert counts["sin"] == counts["cos"] == 1
    assert engine_cost.count_aten(lambda: weight.detach().sin()) >= 2


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, threads = tmp_path / "cost.json", torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["engine_cost", "--repeats", "1", "--json", str(path)])
    try:
        engine_cost.main()
    finally:
        torch.set_num_threads(threads)
    result = json.loads(path.read_text())
    assert set(result["seconds"]) == set(result["operators"]) == set(engine_cost.MODES)
    # No way to train runs fewer operators than convolutions, norms, their gradients, and the other layers' do.
    assert all(count["dispatched"] > 1000 and count["aten"] > count["dispatched"] for count in result["operators"].values())
    assert "| reversible |" in capsys.readouterr().out
