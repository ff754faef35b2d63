"""Reading the allocators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from revbifpn.memory import profile_training
from revbifpn.memory.measure import mark, measure_cpu, measure_cuda
from tests.memory.conftest import TinyModel


def test_the_cpu_allocators_events_are_told_apart_by_operator() -> None:
    count = 0

    def allocate(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal count
        count += 1
        return func(*args, **kwargs)

    run = mark(allocate, lambda: count)

    def step() -> None:
        small = run(torch.empty, (1000,), {})  # 4 kB, operator 0
        large = run(torch.empty, (100_000,), {})  # 400 kB, operator 1
        del large
        medium = run(torch.empty, (10_000,), {})  # 40 kB, operator 2
        del small, medium
        run(torch.empty, (0,), {})

    result = measure_cpu(step, lambda: count)
    assert (result.peak, result.peak_index) == (404_000, 1)
    assert result.by_operator == [4000, 404_000, 44_000, pytest.approx(0, abs=64)]


def test_what_an_earlier_measurement_left_does_not_count_when_it_is_freed() -> None:
    kept: list[torch.Tensor] = []
    measure_cpu(lambda: kept.append(torch.empty(50_000)), lambda: 1)

    def step() -> None:
        kept.clear()  # 200 kB that were there before
        torch.empty(10_000)

    assert measure_cpu(step, lambda: 1).peak == 40_000


def test_the_cuda_allocator_is_asked_for_its_peak_and_its_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a GPU: what is called, in which order, and that recording ends when the step fails."""
    calls: list[str] = []

    def fake(name: str, result: Any = None) -> Any:
        return lambda *args, **kwargs: calls.append(name + ("(off)" if kwargs.get("enabled", 0) is None else "")) or result

    for name, result in {"synchronize": None, "memory_allocated": 100, "reset_peak_memory_stats": None}.items():
        monkeypatch.setattr(torch.cuda, name, fake(name, result))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", fake("max_memory_allocated", 700))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", fake("max_memory_reserved", 2048))
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", fake("record"))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", fake("dump"))

    result = measure_cuda(lambda: calls.append("step"), tmp_path / "snapshot.pickle")
    assert (result.peak, result.peak_index, result.reserved) == (600, None, 2048)
    assert calls.index("memory_allocated") < calls.index("record") < calls.index("step")
    assert calls.index("step") < calls.index("dump") < calls.index("record(off)") < calls.index("max_memory_allocated")

    calls.clear()
    with pytest.raises(KeyError):
        measure_cuda(lambda: {}["x"], tmp_path / "snapshot.pickle")
    assert calls[-1] == "record(off)"
    calls.clear()
    measure_cuda(lambda: None)
    assert "record" not in calls


def test_a_snapshot_is_cudas(tiny: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs method='measure' and device='cuda'"):
        profile_training(tiny, torch.zeros(2, 3, 32, 32), method="measure", snapshot=tmp_path / "x.pickle")
