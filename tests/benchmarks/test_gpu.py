"""The check on a card, run on the CPU at toy size: that it works, not what it finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.networks import Network, NotThereError
from tests.benchmarks.conftest import Command

TOY = replace(gpu_parts.TOY, modes=("reversible", "exact"))


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def test_parity(device: str) -> None:
    rows = {(row["precision"], row["mode"]): row for row in gpu_parts.parity(TOY, device)}
    assert set(rows) == {(precision, mode) for precision in gpu_parts.PRECISIONS for mode in TOY.modes}
    # Norms over few values amplify rounding: of float32 some 1e-6, of the exact mode's grid 1e-4, of half precision 1e-2.
    assert rows["float32", "reversible"]["against_cpu"] < 1e-3
    for (precision, mode), row in rows.items():
        assert row["against_cpu"] < (1e-1 if precision in ("float32", "tf32") else 0.5)
        assert row["identical_to_stored"] or mode == "reversible"
    text = gpu.parity_table(rows.values())
    assert text.count("bit for bit") >= len(gpu_parts.PRECISIONS)


def test_memory(device: str) -> None:
    rows = list(gpu_parts.memory(replace(TOY, modes=("reversible",), others=()), device))
    assert [row["network"] for row in rows] == ["revbifpn_s0, reversible"]
    assert rows[0]["measured"] > 0
    assert rows[0]["predicted"] > 0
    assert "| revbifpn_s0, reversible | 32, 2 |" in gpu.memory_table(rows)


def test_time(device: str) -> None:
    rows = list(gpu_parts.time(replace(TOY, modes=("plain",)), device))
    assert {row["precision"] for row in rows} == {"tf32", "bf16"}
    assert all(len(row["seconds"]) == TOY.repeats and row["first_step"] > 0 for row in rows)
    text = gpu.time_table(rows)
    assert "| revbifpn_s0, plain | 32, 2 | tf32 | eager |" in text
    assert text.count(" | 1.00 |") >= 2


def test_compiled_edges(device: str) -> None:
    rows = {row["how"]: row for row in gpu_parts.compiled(replace(TOY, modes=("reversible",)), device)}
    assert set(rows) == {"compiled edges"}
    assert "seconds" in rows["compiled edges"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_graphs_need_a_card() -> None:
    rows = list(gpu_parts.graph(replace(TOY, modes=("reversible",)), "cpu"))
    assert [(row["how"], row.get("error")) for row in rows] == [
        ("eager", None),
        ("graph", "a CUDA graph needs a CUDA device"),
    ]


def test_a_network_that_fails_costs_no_other_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def on(network: Network, device: str) -> tuple[torch.nn.Module, torch.Tensor]:
        if network.mode == "exact":
            raise NotThereError("not here")
        if network.mode == "stored":
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")
        return torch.nn.Linear(4, 4), torch.zeros(2, 4)

    monkeypatch.setattr(Network, "on", on)
    scale = replace(TOY, modes=("exact", "stored", "reversible"), others=())
    rows = list(gpu_parts.time(scale, "cpu"))
    errors = [row.get("error") for row in rows if row["precision"] == "tf32"]
    assert errors == ["not here", "OutOfMemoryError: CUDA out of memory.", None]
    assert "OutOfMemoryError" in gpu.time_table(rows)


def test_precision_is_put_back() -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    with gpu_parts.computing_in("float32", "cpu"):
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    with gpu_parts.computing_in("tf32", "cpu"):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_parts_run_in_processes_of_their_own(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    output = command(gpu, "--toy", "--device", "cpu", "--parts", "graph", "--json", path)
    result = json.loads(path.read_text())
    part = result["parts"]["graph"]
    assert part["ended"] == "complete"
    assert {row["how"] for row in part["rows"]} == {"eager", "graph"}
    assert "graph: complete" in output
    assert path.with_suffix(".md").read_text() in output
    if result["environment"]["gpu"] is None:
        assert gpu.NO_CARD in output


def test_the_time_limit_stops_a_part_and_keeps_the_others() -> None:
    results = gpu.run_parts(["parity", "graph"], "cpu", True, minutes=0)
    assert [part["ended"] for part in results.values()] == ["stopped after its 0 s"] * 2
    assert [part["rows"] for part in results.values()] == [[], []]


def test_without_a_card_it_says_what_to_do(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(gpu, "--device", "cpu")
    assert "no CUDA device here: --toy runs everything on the CPU" in capsys.readouterr().err


def test_shares_of_the_time_cover_all_parts() -> None:
    assert gpu.SHARES.keys() == gpu_parts.PARTS.keys()
    assert sum(gpu.SHARES.values()) == pytest.approx(1)
