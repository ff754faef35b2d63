"""Half precision: streams are kept in float32, "auto" is exact where it is at work, gradients are stored mode's."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from revbifpn.reversible import ReversibleSequential, recompute, set_exact, set_reversible

from .common import loss_of, pyramid, streams

HALF = [torch.bfloat16, torch.float16]


def step(model: nn.Module, x: list[Tensor], scale: float = 1.0, autocast: torch.dtype | None = None) -> list[Tensor]:
    """Gradients of parameters, the loss times ``scale`` as with loss scaling."""
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        outputs = model(*x)
    (loss_of(outputs) * scale).backward()
    grads = [p.grad for p in model.parameters()]
    assert all(grad is not None for grad in grads)
    return grads  # type: ignore[return-value]


def auto(**kwargs: object) -> ReversibleSequential:
    return set_exact(pyramid(norm=True, **kwargs), "auto").train()  # type: ignore[return-value, arg-type]


def assert_equal_to_stored(model: ReversibleSequential, x: list[Tensor], **kwargs: object) -> None:
    stored = set_reversible(copy.deepcopy(model), False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, theirs = step(model, x, **kwargs), step(stored, x, **kwargs)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("autocast", HALF)
def test_autocast(autocast: torch.dtype) -> None:
    scale = 2.0**10 if autocast == torch.float16 else 1.0  # as a GradScaler does
    assert_equal_to_stored(auto(), streams(size=16), scale=scale, autocast=autocast)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_models(dtype: torch.dtype) -> None:
    assert_equal_to_stored(auto().to(dtype), streams(size=16, dtype=dtype))


def test_half_precision_images() -> None:
    """Streams are raised, edges compute in the dtype of their own parameters, outputs go back to the image's dtype."""
    model = auto()
    assert_equal_to_stored(model, streams(size=16, dtype=torch.bfloat16))
    outputs = model(*streams(size=16, dtype=torch.bfloat16))
    assert {output.dtype for output in outputs} == {torch.bfloat16}


def test_streams_are_float32_between_the_layers() -> None:
    model = auto().bfloat16()
    seen = []
    for layer in model:
        layer.register_forward_hook(lambda m, args, out: seen.extend(stream.dtype for stream in out))
    model(*streams(size=16, dtype=torch.bfloat16))
    assert set(seen) == {torch.float32}


def test_auto_is_ordinary_in_float32() -> None:
    x = streams(size=16)
    ordinary, automatic = set_exact(auto(), False), auto()
    for a, b in zip(ordinary(*x), automatic(*x), strict=True):
        assert torch.equal(a, b)
    assert automatic.exact_bits is None


def test_inference_in_half_precision_is_left_alone() -> None:
    model = auto().bfloat16().eval()
    with torch.no_grad():
        outputs = model(*streams(size=16, dtype=torch.bfloat16))
    assert {output.dtype for output in outputs} == {torch.bfloat16}


def test_set_exact_leaves_the_bits_alone_unless_they_are_named() -> None:
    model = pyramid()
    model.set_exact(True, 10)
    assert set_exact(model).exact_bits == 10
    assert set_exact(model, False).exact_bits is None
    assert set_exact(model, True).exact_bits == 10
    assert {layer.exact_bits for layer in model} == {10}
    assert set_exact(model, True, 12).exact_bits == 12


def test_unknown_exact_is_refused() -> None:
    with pytest.raises(ValueError, match=r'exact must be True, False or "auto", got \'yes\''):
        pyramid().set_exact("yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [4, 9, 16, 22])
def test_any_grid(bits: int) -> None:
    """Values of order one stay far below the range of 2 ** (24 - bits), except with 22 bits, where a range of 4 is left."""
    model = set_exact(pyramid(norm=True), True, bits).train()
    x = [s * 0.1 for s in streams(size=16)]
    stored = set_reversible(copy.deepcopy(model), False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours, theirs = step(model, x), step(stored, x)
    equal = all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert equal or caught, "silently different"
    assert equal or bits == 22
    for output in model(*x):
        steps = output.detach() * 2.0**bits
        assert torch.equal(steps, steps.round())
        assert not torch.equal(steps / 2, (steps / 2).round()), "a coarser grid than was asked for"


def test_recompute_under_autocast() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    reference = copy.deepcopy(module)
    x = torch.randn(2, 3, 8, 8)
    for m, call in ((module, lambda: recompute(module, x)), (reference, lambda: reference(x))):
        with torch.autocast("cpu", torch.bfloat16):
            call().float().sin().sum().backward()
        del m
    for a, b in zip(module.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]  # the same kernels on the same values
