"""Amounts, exact counts, masks of magnitude and Wanda, n:m patterns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from revbifpn.sparsity.criteria import (
    amount,
    as_matrix,
    as_weight,
    check_pattern,
    keep_highest,
    magnitude_mask,
    shares,
    wanda_mask,
)


def test_amounts() -> None:
    assert (amount(0.25).sparsity, amount("0.25").sparsity, amount("2:4").sparsity) == (0.25, 0.25, 0.5)
    assert (amount("1:4").keep, amount("1:4").of, str(amount("1:4")), str(amount(0.7))) == (1, 4, "1:4", "70%")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (-0.1, "at least 0 and less than 1, got -0.1"),
        ("1.5", "at least 0 and less than 1, got 1.5"),
        (math.nan, "at least 0 and less than 1, got nan"),
        (1.0, "got 1.0: at 1 no weight would be left"),
        ("half", "a fraction such as 0.5, or a pattern such as 2:4, got 'half'"),
        ("0:4", "'0:4' must keep 1 to 4 of 4"),
        ("5:4", "'5:4' must keep 1 to 4 of 4"),
    ],
)
def test_wrong_amounts_are_refused(asked: float | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        amount(asked)


def test_layers_that_a_pattern_does_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"a.weight has 6 inputs in each group, no multiple of 4.*dense=\['a.weight'\]"):
        check_pattern("a.weight", nn.Conv2d(12, 4, 1, groups=2).weight, amount("2:4"))
    check_pattern("a.weight", nn.Conv2d(8, 4, 3, groups=2).weight, amount("2:4"))
    assert (amount("1:4").zeros(40), amount(0.29).zeros(100), amount(0.35).zeros(10)) == (30, 29, 3)


@pytest.mark.parametrize("total", [0, 1, 7, 50, 99, 100])
def test_shares_are_exact_and_even(total: int) -> None:
    sizes = [30, 1, 19, 50]
    parts = shares(total, sizes)
    assert sum(parts) == total
    for part, size in zip(parts, sizes, strict=True):
        assert abs(part - total * size / 100) < 1
        assert part <= size


def test_patterns_lie_along_the_input_channels_of_a_group() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 8, 3, 3)  # two groups of 8 of 16 inputs
    mask = as_weight(magnitude_mask(as_matrix(weight), amount("2:4")), weight.shape)
    for start in (0, 4):
        block = weight[:, start : start + 4].abs()
        kept = mask[:, start : start + 4]
        assert (kept.sum(1) == 2).all()
        assert (block.masked_fill(~kept, math.inf).amin(1) >= block.masked_fill(kept, 0).amax(1)).all()
    assert torch.equal(as_weight(as_matrix(weight), weight.shape), weight)


def test_wanda_is_its_formula_row_by_row() -> None:
    torch.manual_seed(0)
    weights, norms = torch.randn(5, 10), torch.rand(10, dtype=torch.float64)
    mask = wanda_mask(weights, norms, amount(0.3))
    scores = weights.abs() * norms
    for row in range(5):
        gone = scores[row].argsort()[:3]
        assert sorted(gone.tolist()) == (~mask[row]).nonzero()[:, 0].tolist()
    assert int((~wanda_mask(weights, norms, amount(0.5), zeros=17)).sum()) == 17
    pairs = wanda_mask(weights, norms, amount("1:2"))
    assert (pairs.view(5, 5, 2).sum(2) == 1).all()
    assert torch.equal(pairs.view(5, 5, 2)[..., 0], scores.view(5, 5, 2)[..., 0] > scores.view(5, 5, 2)[..., 1])


def test_ties_do_not_change_the_count() -> None:
    assert int((~keep_highest(torch.ones(4, 5), amount(0.35))).sum()) == 7
