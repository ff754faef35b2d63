"""Memory and time of a training step: the command, and what it makes of its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cost_plots, cost_tables, growth, inference, training_cost
from benchmarks.common import activation_bytes, peak_alone, time_side_by_side
from benchmarks.networks import Network
from revbifpn import RevBiFPN, set_reversible
from tests.benchmarks.conftest import Command

MODES = ("plain", "reversible")


def test_the_cost_of_a_group(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    toy = ("--toy", "--parts", "cost", "--groups", "s0", "--threads", 1, "--json", path)
    networks = ("--models", "revbifpn_s0", "mobilenetv3_large_100", "--modes", "plain", "checkpointing")
    command(training_cost, *toy, *networks, "--only", "memory")
    output = command(training_cost, *toy, *networks, "--only", "time")
    group = json.loads(path.read_text())["cost"]["s0"]
    labels = {
        "revbifpn_s0, plain",
        "revbifpn_s0, plain, channels_last",
        "mobilenetv3_large_100, checkpointing, channels_last",
    }
    assert set(group["networks"]) == set(group["memory"]["bytes_per_sample"]) == set(group["time"]["seconds"]) == labels
    assert {"cpu", "instructions", "torch", "timm", "date"} <= set(group["time"]["environment"])
    for label in labels:
        assert f"| {label} |" in output
    assert path.with_suffix(".md").read_text() in output
    assert (tmp_path / "training_cost.png").stat().st_size < 300_000


def test_growth(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "growth.json"
    output = command(training_cost, "--toy", "--parts", "growth", "--modes", *MODES, "--threads", 1, "--json", path)
    sweeps = {sweep["quantity"]: sweep for sweep in json.loads(path.read_text())["growth"]["sweeps"]}
    assert set(sweeps) == {"batch", "image_size", "stages"}
    stages = sweeps["stages"]
    found = {mode: growth.growth_per_stage(stages["values"], stages["bytes"][mode]) for mode in MODES}
    # What autograd says it saves is what the allocator holds, but for some small tensors.
    assert found["plain"] == pytest.approx(stages["expected_bytes_per_stage"]["plain"], rel=0.02)
    assert found["plain"] > 100_000
    # Two vectors of batch statistics a norm are kept, 45 kB a stage, and the toy's images are small.
    assert found["reversible"] <= 0.06 * found["plain"]
    assert output.count("| reversible |") == 3
    assert (tmp_path / "memory_growth.png").stat().st_size < 300_000


def test_inference(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "inference.json"
    output = command(training_cost, "--toy", "--parts", "inference", "--threads", 1, "--json", path)
    rows = json.loads(path.read_text())["inference"]["rows"]
    assert [row["batch"] for row in rows] == [1, 8]
    assert all({"plain", "plain, channels_last", "RevBiFPN"} <= set(row["seconds"]) for row in rows)
    assert output.count("| plain |") == 2


def test_what_is_not_measured_stays(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    path.write_text(json.dumps({"cost": {"s0": example()["group"]}, "other": 1}))
    command(training_cost, "--toy", "--parts", "cost", "--groups", "s6", "--models", "efficientnet_b7", "--json", path)
    result = json.loads(path.read_text())
    assert result["other"] == 1
    assert result["cost"]["s0"] == example()["group"]
    rows = result["cost"]["s6"]["memory"]["bytes_per_sample"]
    assert set(rows) == {f"efficientnet_b7, {mode}, channels_last" for mode in ("stored", "checkpointing")}
    assert all(row["cpu"] is None and row["cuda"] > 0 for row in rows.values())
    assert "time" not in result["cost"]["s6"]


def test_wrong_arguments_are_named(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(training_cost, "--groups", "s3", "--models", "resnet50")
    assert "resnet50 not in these groups, which have efficientnet_b3, revbifpn_s3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(training_cost, "--draw", "--json", tmp_path / "none.json")
    assert "none.json to draw from" in capsys.readouterr().err


def example() -> dict[str, Any]:
    """A group's results, with invented figures."""
    environment = {"gpu": None, "cpu": "X", "instructions": "Y", "threads": 2, "torch": "2", "timm": "1", "python": "3"}
    environment["date"] = "2026-01-01"
    figures = {  # MB a sample, milliseconds of a step
        ("revbifpn_s0", "plain", False): (90.0, 800.0),
        ("revbifpn_s0", "reversible", False): (3.0, 720.0),
        ("revbifpn_s0", "stored", False): (45.0, 640.0),
        ("resnet50", "stored", True): (80.0, 704.0),
        ("resnet50", "checkpointing", True): (40.0, 900.0),
    }
    networks = {Network(name, mode, 8, 224, last): figure for (name, mode, last), figure in figures.items()}
    return {
        "environment": environment,
        "group": {
            "networks": {
                str(n): {
                    "name": n.name,
                    "mode": n.mode,
                    "batch": 8,
                    "image_size": 224,
                    "channels_last": n.channels_last,
                    "top1": 76.1,
                }
                for n in networks
            },
            "memory": {
                "environment": environment,
                "bytes_per_sample": {str(n): {"cpu": mb * 1e6, "cuda": None} for n, (mb, _) in networks.items()},
            },
            "time": {"environment": environment, "seconds": {str(n): [ms / 1000] for n, (_, ms) in networks.items()}},
        },
    }


def test_the_front_of_memory_against_time() -> None:
    front = cost_tables.front_of(cost_tables.costs_of(example()["group"]))
    assert [cost.label for cost in front] == ["revbifpn_s0, reversible", "revbifpn_s0, stored"]


def test_the_table_compares_with_the_yardstick() -> None:
    text = cost_tables.group_table(example()["group"])
    assert "| revbifpn_s0, plain | 224, 8 | 76.1 | 90 | - | 100 (100 - 100) | 1.00 | - |" in text
    assert "| resnet50, stored, channels_last | 224, 8 | 76.1 | 80 | - | 88 (88 - 88) | 0.88 | 1.00 |" in text
    assert "| revbifpn_s0, reversible | 224, 8 | 76.1 | 3 | - | 90 (90 - 90) | 0.90 | 1.12 |" in text


def test_labels_of_a_picture_do_not_cover_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(cost_plots, "save", lambda figure, path: kept.append(figure) or path)
    example_ = example()
    assert cost_plots.draw({"cost": {"s0": example_["group"]}}, tmp_path) == [tmp_path / "training_cost.png"]
    (axes,) = kept[0].axes
    renderer = kept[0].canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert {text.get_text() for text in axes.texts} >= {"plain S0", "1: stored", "resnet50 (76.1)"}
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_activations_are_what_a_step_takes_above_weights_and_gradients() -> None:
    """Of an ordinary network: what autograd saves, and less than twice that."""
    network = Network("revbifpn_s0", "plain", 2, 64)
    model, images = network.build(num_classes=10), network.images()
    sweep = growth.Sweep("stages", (), image_size=64)
    saved = growth.saved_bytes(sweep, stages=2)
    gradients = sum(param.nbytes for param in model.parameters())
    assert saved < peak_alone(model, images) < 1.6 * saved
    assert saved - gradients < activation_bytes(model, images) < 1.6 * saved
    assert activation_bytes(model, images, method="predict") == pytest.approx(activation_bytes(model, images), rel=0.03)


def test_the_peak_alone_counts_no_gradients() -> None:
    """A reversible network that is deeper by some stages takes no more; with gradients it would, by its parameters."""
    variants = [growth.Sweep("stages", ()).at(stages, "reversible")[0] for stages in (0, 2)]
    models = [RevBiFPN(variant, num_classes=10).train() for variant in variants]
    images = torch.zeros(2, 3, 32, 32)
    shallow, deep = (peak_alone(model, images, method="predict") for model in models)
    buffers = [sum(buffer.nbytes for buffer in model.buffers()) for model in models]
    assert deep - shallow <= buffers[1] - buffers[0]  # two vectors a norm: the batch's statistics
    assert peak_alone(set_reversible(models[1], False), images, method="predict") > deep + buffers[1]


def test_steps_take_turns() -> None:
    order: list[str] = []
    seconds = time_side_by_side({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_inference_by_itself(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "inference.json"
    output = command(inference, "--image-size", 32, "--batches", 2, "--repeats", 1, "--json", path)
    (row,) = json.loads(path.read_text())["revbifpn_s0"]["rows"]
    assert (row["image_size"], row["batch"]) == (32, 2)
    assert {label: len(seconds) for label, seconds in row["seconds"].items()} == {
        "plain": 1,
        "plain, channels_last": 1,
        "RevBiFPN": 1,
        "RevBiFPN, fused": 1,
    }
    assert "| revbifpn_s0, 32, batch 2 | RevBiFPN, fused |" in output
