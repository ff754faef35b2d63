from __future__ import annotations

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from revbifpn.sparsity.distribution import count_zeros, erk_densities, zeros_of

WEIGHTS = {
    "a": torch.empty(16, 8, 3, 3),
    "b": torch.empty(4, 4, 1, 1),
    "c": torch.empty(64, 64, 3, 3),
    "d": torch.empty(64, 16, 1, 1),
    "e": torch.empty(10, 64),
}


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7, 0.75, 0.9, 0.99])
def test_uniform_counts_are_floors_of_the_share(sparsity: float) -> None:
    zeros = zeros_of(WEIGHTS, sparsity)
    hundredths = round(sparsity * 100)
    assert zeros == {name: weight.numel() * hundredths // 100 for name, weight in WEIGHTS.items()}


def test_a_product_that_floating_point_rounds_down_counts_as_whole() -> None:
    assert 0.29 * 100 < 29
    assert count_zeros(100, 0.29) == 29


def _solved_by_bisection(weights: dict[str, Tensor], sparsity: float) -> dict[str, float]:
    """ERK's densities from their definition: the one eps for which min(1, eps * p) has the wanted mean."""
    scores = {name: sum(w.shape) / w.numel() for name, w in weights.items()}
    total = sum(w.numel() for w in weights.values())

    def excess(eps: float) -> float:
        return sum(min(1.0, eps * scores[n]) * w.numel() for n, w in weights.items()) - (1 - sparsity) * total

    eps = brentq(excess, 0.0, 2 / min(scores.values()), xtol=1e-14)
    return {name: min(1.0, eps * score) for name, score in scores.items()}


@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.5, 0.75, 0.9, 0.98])
def test_erk_is_what_bisection_finds(sparsity: float) -> None:
    expected = _solved_by_bisection(WEIGHTS, sparsity)
    densities = erk_densities(WEIGHTS, sparsity)
    for name in WEIGHTS:
        # brentq's own tolerance, relative to eps.
        assert densities[name] == pytest.approx(expected[name], rel=1e-9)


@pytest.mark.parametrize("sparsity", [0.05, 0.5, 0.9, 0.98])
def test_erk_counts_add_up_to_the_networks_share(sparsity: float) -> None:
    zeros = zeros_of(WEIGHTS, sparsity, "erk")
    densities = erk_densities(WEIGHTS, sparsity)
    total = sum(w.numel() for w in WEIGHTS.values())
    assert sum(zeros.values()) == count_zeros(total, sparsity)
    for name, weight in WEIGHTS.items():
        assert abs(zeros[name] - (1 - densities[name]) * weight.numel()) <= 1


def test_erk_at_moderate_sparsity_leaves_small_layers_dense() -> None:
    assert zeros_of(WEIGHTS, 0.5, "erk")["b"] == 0
    assert zeros_of(WEIGHTS, 0.0, "erk") == dict.fromkeys(WEIGHTS, 0)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), "0.5", True])
def test_a_sparsity_out_of_its_range_is_named(sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"fraction of zeros, at least 0 and less than 1, got"):
        zeros_of(WEIGHTS, sparsity)


def test_other_bad_input() -> None:
    with pytest.raises(ValueError, match=r"uniform, erk, got 'ERK\+'"):
        zeros_of(WEIGHTS, 0.5, "ERK+")
    with pytest.raises(ValueError, match="no weight to make sparse"):
        zeros_of({}, 0.5)
    with pytest.raises(ValueError, match=r"a would be left without a weight: 1152 zeros of 1152"):
        zeros_of(WEIGHTS, 0.9999999999)
