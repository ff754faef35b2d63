"""SparseGPT's update against brute force: least squares, and the optimal brain surgeon with explicit inverses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from revbifpn.sparsity.criteria import Amount, amount, as_matrix, magnitude_mask
from revbifpn.sparsity.distribution import count_zeros
from revbifpn.sparsity.sparsegpt import inverse_factor, relative_error, sparsegpt
from tests.sparsity.test_calibration import design_matrix, moments

HALF = amount(0.5)


def problem(rows: int = 6, columns: int = 20, samples: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, correlated inputs (samples, columns) and their second moments."""
    torch.manual_seed(0)
    inputs = torch.randn(samples, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    return torch.randn(rows, columns, dtype=torch.float64), inputs, inputs.T @ inputs


def least_squares(inputs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """The best weights for a mask, row by row."""
    best = torch.zeros_like(weights)
    for row, kept in enumerate(mask):
        target = inputs @ weights[row]
        best[row, kept] = torch.linalg.lstsq(inputs[:, kept], target[:, None]).solution[:, 0]
    return best


@pytest.mark.parametrize("block", [4, 7, 128])
def test_removing_the_first_columns_is_least_squares(block: int) -> None:
    """Then all columns that stay come later, so the update is the exact optimum."""
    weights, inputs, hessian = problem()
    mask = torch.ones_like(weights, dtype=torch.bool)
    for row in range(len(mask)):
        mask[row, : row + 3] = False
    updated, kept = sparsegpt(weights, hessian, HALF, mask=mask, damping=1e-13, block=block)
    assert torch.equal(kept, mask)
    assert not updated[~mask].any()
    # The damping alone makes a difference, and rounding: the moments' condition number is about 1e6.
    torch.testing.assert_close(updated, least_squares(inputs, weights, mask), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(4, 6, 2, padding="same", padding_mode="reflect", bias=False),
    ],
)
def test_a_convolutions_update_is_least_squares_on_its_outputs(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 9, 9)
    weight = layer.weight.detach().clone()
    sums, _, _ = moments(layer, x)
    rows = 6 // layer.groups
    for group in range(layer.groups):
        matrix = as_matrix(weight[group * rows : (group + 1) * rows]).double()
        mask = torch.ones_like(matrix, dtype=torch.bool)
        mask[:, :5] = False
        updated, _ = sparsegpt(matrix, sums[group], HALF, mask=mask, damping=1e-13)
        design = design_matrix(layer, x, group * rows)
        torch.testing.assert_close(updated, least_squares(design, matrix, mask), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block", [3, 20])
def test_any_masks_update_is_the_brain_surgeons_column_by_column(block: int) -> None:
    weights, _, hessian = problem()
    mask = torch.rand(weights.shape, generator=torch.Generator().manual_seed(3)) > 0.4
    updated, _ = sparsegpt(weights, hessian, HALF, mask=mask, damping=0.01, block=block)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    expected = weights.clone()
    for column in range(weights.shape[1]):
        inverse = torch.linalg.inv(damped[column:, column:])  # the columns before are settled
        for row in range(len(weights)):
            if not mask[row, column]:
                expected[row, column:] -= expected[row, column] / inverse[0, 0] * inverse[:, 0]
                expected[row, column] = 0
    torch.testing.assert_close(updated, expected, rtol=1e-8, atol=1e-8)


def test_the_error_is_below_magnitudes_and_above_least_squares() -> None:
    """Where inputs depend on each other, as those of trained networks do: 40 of them, made of 12 and a little noise."""
    weights, noise, _ = problem(rows=16, columns=40, samples=600)
    inputs = torch.randn(600, 12, dtype=torch.float64) @ torch.randn(12, 40, dtype=torch.float64) + 0.03 * noise
    hessian = inputs.T @ inputs
    updated, mask = sparsegpt(weights, hessian, HALF)
    by_magnitude = magnitude_mask(weights, HALF)
    errors = [
        relative_error(weights, new, hessian)
        for new in (least_squares(inputs, weights, mask), updated, weights * mask, weights * by_magnitude)
    ]
    best, ours, without_update, magnitude = errors
    assert best <= ours < 0.5 * min(without_update, magnitude)
    outputs = inputs @ weights.T
    expected = (outputs - inputs @ updated.T).square().sum() / outputs.square().sum()
    assert ours == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(("rows", "columns", "sparsity"), [(7, 13, 0.5), (3, 300, 0.7), (5, 129, 0.333), (4, 10, 0.0)])
def test_the_number_of_zeros_is_exact(rows: int, columns: int, sparsity: float) -> None:
    weights, _, hessian = problem(rows, columns, 400)
    updated, mask = sparsegpt(weights, hessian, amount(sparsity))
    assert int((updated == 0).sum()) == int((~mask).sum()) == count_zeros(rows * columns, sparsity)
    if not sparsity:
        assert torch.equal(updated, weights)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
def test_patterns_keep_n_of_each_m(pattern: str) -> None:
    weights, _, hessian = problem(columns=24)
    updated, mask = sparsegpt(weights, hessian, amount(pattern), block=10)
    keep, of = map(int, pattern.split(":"))
    assert (mask.view(6, -1, of).sum(2) == keep).all()
    assert torch.equal(mask, updated != 0)
    assert relative_error(weights, updated, hessian) < relative_error(weights, weights * mask, hessian)


def test_inputs_that_never_occur_go_first_and_disturb_nothing() -> None:
    weights, inputs, _ = problem()
    inputs[:, 4:8] = 0
    hessian = inputs.T @ inputs
    updated, mask = sparsegpt(weights, hessian, amount(0.3))
    assert not mask[:, 4:8].any()
    some, few = sparsegpt(weights, hessian, amount(0.1))
    assert few[:, :4].all()
    assert few[:, 8:].all()
    assert torch.equal(some[few], weights[few])  # 12 of the 24 that do not matter are enough, and the others stay
    live = [c for c in range(20) if not 4 <= c < 8]
    alone, _ = sparsegpt(weights[:, live], hessian[live][:, live], HALF, mask=mask[:, live])
    torch.testing.assert_close(updated[:, live], alone, rtol=1e-9, atol=1e-9)


def test_a_layer_without_any_input_is_pruned_without_update() -> None:
    weights, _, hessian = problem()
    updated, mask = sparsegpt(weights, torch.zeros_like(hessian), HALF)
    assert int(mask.sum()) == 60
    assert torch.equal(updated, weights * mask)


def test_a_pruned_layer_can_be_pruned_further() -> None:
    weights, _, hessian = problem(rows=9, columns=150, samples=600)
    once, first = sparsegpt(weights, hessian, HALF)
    twice, second = sparsegpt(once, hessian, amount(0.7), block=32)
    assert not (second & ~first).any()
    assert int((twice == 0).sum()) == count_zeros(weights.numel(), 0.7)
    lower, mask = sparsegpt(once, hessian, amount(0.2))  # there is nothing left to do
    assert torch.equal(mask, first)
    assert torch.equal(lower, once)


def test_the_factor_is_that_of_the_inverse() -> None:
    _, _, hessian = problem()
    factor = inverse_factor(hessian, 0.05)
    damped = hessian + 0.05 * hessian.diagonal().mean() * torch.eye(20, dtype=torch.float64)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(20, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    few = inverse_factor(hessian[:1].T @ hessian[:1])  # of one sample: of rank 1, it exists by damping alone
    assert few.isfinite().all()


def test_inputs_that_are_not_finite_are_refused() -> None:
    weights, _, hessian = problem()
    hessian[0, 0] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinite"):
        sparsegpt(weights, hessian, Amount(0.5))
