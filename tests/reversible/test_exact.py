"""Exact reversal: bit-identical activations and gradients, and a report where that cannot be kept."""

from __future__ import annotations

import copy
import warnings
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from revbifpn.reversible import (
    ExactReversalWarning,
    ReversalPrecisionWarning,
    ReversibleSequential,
    RevSilo,
    set_exact,
    set_reversible,
)
from revbifpn.reversible.exact import exact_limit, round_to_grid

from .common import Edge, gradients, loss_of, pyramid, silo, streams


def autocast(enabled: bool) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16) if enabled else nullcontext()


def assert_bit_identical(model: nn.Module, x: list[Tensor], bf16: bool) -> None:
    """Gradients of the reversible pass equal the stored pass's in every bit, and nothing was reported."""
    stored = set_reversible(copy.deepcopy(model), False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExactReversalWarning)
        with autocast(bf16):
            ours = gradients(model, x)
            theirs = gradients(stored, x)
    for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_bit_identical_to_stored_mode(bf16: bool, dropout: float) -> None:
    assert_bit_identical(pyramid(exact=True, norm=True, dropout=dropout).train(), streams(size=16), bf16)


@pytest.mark.parametrize("bf16", [False, True])
def test_default_mode_is_not_bit_identical(bf16: bool) -> None:
    """What exact mode is for; if this fails, it is not needed any more."""
    with pytest.raises(AssertionError):
        assert_bit_identical(pyramid(norm=True).train(), streams(size=16), bf16)


def test_half_precision_without_exact_mode_is_reported_once() -> None:
    model = pyramid()
    with autocast(True), pytest.warns(ReversalPrecisionWarning, match=r"bfloat16 autocast without exact=True.*percents"):
        model(*streams())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with autocast(True):
            model(*streams())
            pyramid(exact=True)(*streams())
            with torch.no_grad():
                pyramid()(*streams())
        pyramid()(*streams())


@pytest.mark.parametrize("bf16", [False, True])
def test_two_hundred_silos(bf16: bool) -> None:
    torch.manual_seed(0)
    model = ReversibleSequential(*(silo(2, 2, norm=True) for _ in range(200)), exact=True).train()
    x = streams(2)
    assert_bit_identical(model, x, bf16)
    with torch.no_grad(), autocast(bf16):
        model.eval()
        rebuilt = model.inverse(*model(*x))
    for ours, original in zip(rebuilt, x, strict=True):
        assert torch.equal(ours, round_to_grid(original, 13))


def test_activations_between_the_layers_are_rebuilt_bit_for_bit() -> None:
    model = pyramid(exact=True, norm=True).train()
    seen: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Edge):
            module.register_forward_pre_hook(
                lambda m, args, name=name: seen.setdefault(name, []).append(args[0].detach().clone())
            )
    loss_of(model(*streams(size=16))).backward()
    assert seen
    for first, second in seen.values():  # the edge's input in forward, and rebuilt in backward
        assert torch.equal(first, second)


def test_edges_with_a_skip_of_their_own_and_tied_parameters() -> None:
    """Gradients are summed in stored mode's order even where a tensor is used twice."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x).tanh()

    torch.manual_seed(0)
    tied = Skip()
    layers = [RevSilo({(0, 1): tied if k % 2 else Skip()}, {(1, 0): tied}) for k in range(4)]
    model = ReversibleSequential(*layers, exact=True)
    x = [streams()[0], streams(seed=3)[0]]
    assert_bit_identical(model, x, False)


def test_rounding_is_to_the_nearest_multiple_with_straight_gradient() -> None:
    x = torch.tensor([0.3, -0.3, 0.125, 0.375, 2.0], requires_grad=True)
    y = round_to_grid(x, 2)
    assert y.tolist() == [0.25, -0.25, 0.0, 0.5, 2.0]  # halves go to even
    (y * torch.arange(5)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 2, 3, 4]


def test_forward_values_change_by_the_rounding_only() -> None:
    """Each edge moves a value by at most half a step, and the edges after it pass that on."""
    model = pyramid().eval()
    with torch.no_grad():
        default = model(*streams())
        exact = set_exact(model)(*streams())
    for a, b in zip(default, exact, strict=True):
        assert 0 < (a - b).abs().max() < 50 * 2.0**-13


def test_leaving_the_range_is_reported_once_with_stream_and_magnitude() -> None:
    torch.manual_seed(0)
    model = ReversibleSequential(silo(2, 2), silo(2, 2), exact=True)
    limit = exact_limit(torch.float32, 13)
    assert limit == 2048
    small, large = streams(2), streams(2)
    large[1] += 3 * limit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(model, small)
    with pytest.warns(ExactReversalWarning, match=r"stream 1 after reversible layer 0 \(RevSilo\) .* magnitude of 614\d"):
        gradients(model, large)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(model, large)


def test_edges_that_return_other_values_in_backward_are_reported() -> None:
    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.calls = nn.Conv2d(4, 4, 1), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.conv(x) + self.calls

    model = ReversibleSequential(RevSilo({(0, 1): Drifting()}, {}), exact=True)
    with pytest.warns(ExactReversalWarning, match="rebuilt input of the first reversible layer differs .* in stream 1"):
        gradients(model, [streams()[0], streams()[0]])


def test_a_layer_by_itself_refuses_an_exact_sum_in_half_precision() -> None:
    layer = silo(2, 2).bfloat16()
    layer.exact_bits = 13
    with pytest.raises(TypeError, match=r"needs float32 or float64 streams, got torch.bfloat16.*ReversibleSequential"):
        layer(*streams(2, dtype=torch.bfloat16))


def test_float64_has_a_wider_range() -> None:
    model = pyramid(exact=True, norm=True).double().train()
    x = [s + 1e5 for s in streams(dtype=torch.float64)]
    assert_bit_identical(model, x, False)


def test_state_dict_passes_between_modes() -> None:
    exact, default = pyramid(exact=True, norm=True), pyramid(norm=True)
    default.load_state_dict(exact.state_dict())
    exact.load_state_dict(default.state_dict())
    assert set_exact(exact, False).exact_bits is None
