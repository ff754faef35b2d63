"""The Python interface: what a report says, and that the model is left as it was."""

from __future__ import annotations

import copy
import gc
import json

import pytest
import torch
from torch import nn

import revbifpn.memory.profile as profile_module
from revbifpn import set_reversible
from revbifpn.memory import MemoryReport, UnsupportedOperatorError, profile_training
from revbifpn.memory.report import CATEGORIES, thin_timeline
from revbifpn.reversible.units import format_bytes
from tests.memory.conftest import TinyModel

IMAGES = torch.empty(4, 3, 32, 32, device="meta")
METHODS = ["predict", "measure"]


def make(model: nn.Module, method: str = "predict", **options: object) -> MemoryReport:
    return profile_training(model, IMAGES, method=method, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_everything_at_the_peak_is_accounted_for(tiny: TinyModel, method: str) -> None:
    report = make(tiny, method, optimizer="adamw")
    params = sum(p.nbytes for p in tiny.parameters())
    assert tuple(report.categories) == CATEGORIES
    assert sum(report.categories.values()) == report.peak
    assert sum(t.nbytes for t in report.tensors) == report.peak
    assert report.categories["parameters"] == params
    assert 2 * params <= report.categories["optimizer state"] <= 2 * params + 4 * len(list(tiny.parameters()))
    assert report.categories["inputs"] == 4 * 3 * 32 * 32 * 4
    assert report.categories["buffers"] == sum(b.nbytes for b in tiny.buffers())
    for sums in (report.stages, report.streams, report.kinds):
        assert sum(sums.values()) == report.activations
    assert report.peak_point.nbytes == report.peak == max(p.nbytes for p in report.timeline)
    assert [t.nbytes for t in report.tensors[:10]] == sorted((t.nbytes for t in report.tensors[:10]), reverse=True)
    assert report.per_sample == (report.activations + report.categories["inputs"]) / 4


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was(tiny: TinyModel, method: str) -> None:
    tiny.fc.weight.grad = torch.ones_like(tiny.fc.weight)
    before, random = copy.deepcopy(tiny.state_dict()), torch.get_rng_state()
    make(tiny, method, optimizer="sgd")
    if method == "predict":
        assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())
    assert tiny.fc.weight.grad is not None
    assert torch.equal(tiny.fc.weight.grad, torch.ones_like(tiny.fc.weight))
    assert tiny.stem.weight.grad is None
    assert tiny.body.reports.said == set()


def test_where_tensors_belong(tiny: TinyModel) -> None:
    report = make(set_reversible(tiny, False))
    assert set(report.stages) <= {
        "stem (Conv2d)",
        *(f"body.{i} (RevBlock)" for i in range(4)),
        "fc (Linear)",
        "outside the model",
    }
    assert report.streams["stride 2"] > 0.7 * report.activations
    assert "convolution output" in report.kinds
    largest = next(t for t in report.tensors if t.kind == "convolution output" and t.module == "stem")
    assert (largest.shape, largest.operator, largest.phase, largest.stream) == (
        (4, 8, 16, 16),
        "convolution",
        "forward",
        "stride 2",
    )


def test_reversible_mode_takes_less(tiny: TinyModel) -> None:
    reversible, stored = make(tiny), make(set_reversible(copy.deepcopy(tiny), False))
    assert reversible.activations < 0.6 * stored.activations
    assert any(kind.startswith("rebuilt") for kind in reversible.kinds)


def test_phases_come_in_order(tiny: TinyModel) -> None:
    phases = [point.phase for point in make(tiny, optimizer="sgd").timeline]
    assert list(dict.fromkeys(phases)) == ["forward", "backward", "optimizer"]
    assert phases == sorted(phases, key=["forward", "backward", "optimizer"].index)


def test_measurements_do_not_disturb_each_other(tiny: TinyModel) -> None:
    """Models may hold reference cycles: what one measurement leaves must not be freed, and counted, within the next."""
    object.__setattr__(tiny, "cycle", [tiny])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        gc.collect()
        return logits.mean()

    gc.disable()
    try:
        assert len({make(tiny, "measure", loss=loss).peak for _ in range(3)}) == 1
    finally:
        gc.enable()


def test_a_prediction_touches_no_data(tiny: TinyModel) -> None:
    """A step whose images alone are larger than any machine's memory."""
    report = profile_training(tiny, torch.empty(10**6, 3, 4096, 4096, device="meta"))
    assert report.categories["inputs"] == 10**6 * 3 * 4096 * 4096 * 4
    assert report.batch == 10**6


def test_gradients_are_all_there_at_the_end(tiny: TinyModel) -> None:
    report = make(tiny, optimizer="sgd")
    last = report.timeline[-1].nbytes
    params = sum(p.nbytes for p in tiny.parameters())
    static = report.categories["buffers"] + report.categories["inputs"]
    assert last >= 3 * params + static  # weights, gradients, momentum


def test_cuda_predictions_round_as_its_allocator_does(tiny: TinyModel) -> None:
    report = make(tiny, device="cuda")
    assert all(t.nbytes % 512 == 0 for t in report.tensors)
    assert not any(t.kind.startswith("workspace") for t in report.tensors)
    assert "cuDNN" in report.notes[0]


def test_positional_and_keyword_inputs_and_own_functions(tiny: TinyModel) -> None:
    whole = make(tiny)
    assert profile_training(tiny, (IMAGES,)).peak == whole.peak
    assert profile_training(tiny, {"image": IMAGES}).peak == whole.peak
    report = profile_training(
        tiny,
        IMAGES,
        loss=lambda logits: torch.nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long)),
        optimizer=lambda params: torch.optim.RMSprop(params),
    )
    assert report.optimizer == "custom"
    assert report.categories["optimizer state"] >= report.categories["parameters"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method must be 'predict' or 'measure', got 'guess'"),
        ({"device": "tpu"}, "device must be 'cpu' or 'cuda', got 'tpu'"),
        ({"optimizer": "adamwx"}, "unknown optimizer 'adamwx'"),
    ],
)
def test_wrong_arguments_are_named(tiny: TinyModel, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_measuring_on_a_device_that_is_not_there(tiny: TinyModel) -> None:
    with pytest.raises(ValueError, match="no CUDA device to measure on: use method='predict'"):
        make(tiny, "measure", device="cuda")


def test_a_model_without_gradients_is_refused(tiny: TinyModel) -> None:
    with pytest.raises(ValueError, match="nothing that has a gradient"):
        make(tiny.requires_grad_(False))
    assert not any(p.requires_grad for p in tiny.parameters())


def test_an_operator_that_needs_values_is_named() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.fc(x.mean((2, 3)))
            return y[: int(y.argmax())]

    model = Counts()
    with pytest.raises(UnsupportedOperatorError, match="aten::_local_scalar_dense"):
        make(model)
    assert type(model.fc.weight) is nn.Parameter


def test_json_and_the_thinned_timeline(tiny: TinyModel) -> None:
    report = make(tiny)
    content = json.loads(report.to_json())
    assert content["peak"] == report.peak
    assert content["per_sample"] == report.per_sample
    points = report.timeline
    thin = thin_timeline(points, report.peak_index, limit=20)
    assert len(thin) <= 30
    assert max(p.nbytes for p in thin) == report.peak
    assert report.peak_index in {p.index for p in thin}


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_536_000, "1.54 MB"), (24 * 2**30, "25.8 GB"), (5e12, "5 TB")],
)
def test_sizes_are_readable(nbytes: float, text: str) -> None:
    assert format_bytes(nbytes) == text


def test_the_documented_example_runs() -> None:
    import doctest

    results = doctest.testmod(profile_module)
    assert results.attempted >= 5
    assert results.failed == 0
