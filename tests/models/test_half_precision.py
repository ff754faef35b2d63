"""S0 in half precision: reversible mode's gradients are stored mode's in the same setting, bit for bit (exact="auto")."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn.models import RevBiFPN, RevBiFPNPyramid
from revbifpn.reversible import ReversalPrecisionWarning, set_exact, set_reversible
from tests.networks import SMALL

BATCH, SIDE = 4, 64


@contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        yield


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return RevBiFPN("s0", num_classes=5, drop_path_rate=0.2, drop_rate=0.2).train()


def images(dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def labels() -> Tensor:
    return torch.arange(BATCH) % 5


def step(model: nn.Module, dtype: torch.dtype | None, image: Tensor, scale: float = 1.0) -> list[Tensor]:
    """Gradients of the image and of all parameters of a cross entropy."""
    torch.manual_seed(3)
    leaf = image.clone().requires_grad_()
    with autocast(dtype):
        loss = F.cross_entropy(model(leaf), labels())
    params = list(model.parameters())
    return list(torch.autograd.grad(loss.float() * scale, [leaf, *params]))


SETTINGS: dict[str, dict[str, Any]] = {
    "bf16 autocast": {"autocast": torch.bfloat16},
    "fp16 autocast": {"autocast": torch.float16, "scale": 2.0**12},
    "bfloat16 model": {"model": torch.bfloat16, "image": torch.bfloat16},
    "float16 model": {"model": torch.float16, "image": torch.float16, "scale": 2.0**6},
    "bfloat16 image under autocast": {"autocast": torch.bfloat16, "image": torch.bfloat16},
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_stored_modes_bit_for_bit(name: str, layout: torch.memory_format) -> None:
    setting = SETTINGS[name]
    model = classifier().to(setting.get("model", torch.float32))
    stored = set_reversible(copy.deepcopy(model), False)
    image = images(setting.get("image", torch.float32)).contiguous(memory_format=layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, theirs = (step(m, setting.get("autocast"), image, setting.get("scale", 1.0)) for m in (model, stored))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    assert all(a.isfinite().all() for a in ours)
    for a, b in zip(model.buffers(), stored.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_of_a_float32_model(dtype: torch.dtype) -> None:
    """The pyramid computes in its own precision, and gives levels and the image's gradient in the image's."""
    torch.manual_seed(0)
    model = RevBiFPNPyramid("s0").train()
    results = []
    for m in (model, set_reversible(copy.deepcopy(model), False)):
        leaf = images(dtype).requires_grad_()
        levels = m(leaf)
        assert {level.dtype for level in levels} == {dtype}
        loss = torch.stack([level.float().square().mean() for level in levels]).sum()
        results.append(torch.autograd.grad(loss, [leaf, *m.parameters()]))
    assert results[0][0].dtype == dtype
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.06), (torch.float16, 0.04)])
def test_ordinary_reversal_is_off_within_bounds(dtype: torch.dtype, most: float) -> None:
    """What the automatic mode is for; if nothing is off any more, it is not needed.

    Roundings to half precision flip where rebuilt activations differ. The bound is of all gradients together: 0.022 and 0.013
    were measured.
    """
    model = set_exact(classifier(), False)
    stored = set_reversible(copy.deepcopy(model), False)
    scale = 2.0**12 if dtype == torch.float16 else 1.0
    with pytest.warns(ReversalPrecisionWarning):
        ours = step(model, dtype, images(), scale)
    theirs = step(stored, dtype, images(), scale)
    together = [torch.cat([grad.flatten() for grad in grads]) for grads in (ours, theirs)]
    assert 1e-3 < (together[0] - together[1]).norm() / together[1].norm() < most


def train(model: nn.Module, steps: int, first_scale: float) -> tuple[list[Tensor], list[float]]:
    """Weights after some steps of fp16 autocast with loss scaling, and the scales of the steps."""
    scaler = torch.amp.GradScaler("cpu", init_scale=first_scale, growth_interval=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scales = []
    for number in range(steps):
        torch.manual_seed(number)
        with autocast(torch.float16):
            loss = F.cross_entropy(model(images(seed=number)), labels())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    return list(model.parameters()), scales


def test_loss_scaling_trains_as_in_stored_mode() -> None:
    """The first scale overflows, so that step is skipped and the scale halved, in both modes alike."""
    model = classifier()
    stored = set_reversible(copy.deepcopy(model), False)
    start = copy.deepcopy(list(model.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Detected call of")
        ours, scales = train(model, 4, 2.0**40)
        theirs, their_scales = train(stored, 4, 2.0**40)
    assert scales == their_scales
    assert scales[0] == 2.0**39
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    assert any(torch.equal(a, b) for a, b in zip(ours, start, strict=True)) is (scales[-1] < 2.0**37)


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("setting", ["float32", "bf16 autocast", "bfloat16 model"])
def test_pyramids_come_back_in_the_dtype_of_the_edges(setting: str, lean: bool) -> None:
    """In every mode as from an ordinary network, with hooks on the modules too, which make layers take plain forms."""
    dtype = torch.bfloat16 if setting == "bfloat16 model" else torch.float32
    model = RevBiFPNPyramid(SMALL).to(dtype)
    if not lean:
        for module in model.modules():
            module.register_forward_hook(lambda *_: None)
    for reversible in (True, False):
        for training in (True, False):
            set_reversible(model.train(training), reversible)
            with autocast(torch.bfloat16 if setting == "bf16 autocast" else None):
                levels = model(images(dtype))
            assert {level.dtype for level in levels} == {torch.float32 if setting == "float32" else torch.bfloat16}


def test_all_precisions_in_a_row() -> None:
    """Nothing that a pass in one precision leaves behind disturbs the next."""
    model = classifier()
    stored = set_reversible(copy.deepcopy(model), False)
    for dtype in (torch.bfloat16, None, torch.float16, torch.bfloat16):
        ours, theirs = (step(m, dtype, images()) for m in (model, stored))
        for a, b in zip(ours, theirs, strict=True):
            if dtype is None:  # ordinary reversal in float32
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
            else:
                assert torch.equal(a, b)
