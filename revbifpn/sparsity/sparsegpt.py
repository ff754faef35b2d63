"""SparseGPT's update (arXiv 2301.00774, algorithm 1): prune column by column, and let later columns make good for it.

Of a layer ``y = W x``, the squared error over calibration inputs is ``tr((W - V) H (W - V)^T)`` with ``H = E[x x^T]``. If a
weight at column j is removed, the best change of the columns after j is given by row j of the upper Cholesky factor of the
inverse of H (the classic optimal brain surgeon, restricted to later columns, for all rows at once).

Three things differ from the published code, on purpose: the number of zeros is exact, whereas there a threshold takes ties
too; weights of an input that never occurs are the first to go, but are not removed beyond that number; and weights that are
zero already stay zero, so that a pruned network can be pruned further.
"""

from __future__ import annotations

import torch
from torch import Tensor

from revbifpn.sparsity.criteria import Amount, shares

DAMPING = 0.01
BLOCK = 128


def sparsegpt(
    matrix: Tensor,
    hessian: Tensor,
    asked: Amount,
    *,
    zeros: int | None = None,
    mask: Tensor | None = None,
    damping: float = DAMPING,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Prune a layer's matrix and update the weights that stay.

    Args:
        matrix: weights, (rows, columns).
        hessian: second moments of the inputs, (columns, columns); its scale does not matter.
        asked: how much goes. The choice is made in blocks of columns, over all rows of a block; in an n:m pattern in each
            group of a row.
        zeros: how many weights go; None for what ``asked`` says.
        mask: use this mask, True where a weight is kept, instead of choosing one.
        damping: is added to the diagonal, as a fraction of its mean: it stands against inputs that nearly depend on each
            other and against too few samples.
        block: columns in a block; an n:m pattern takes the next multiple of m.

    Returns:
        The new matrix in float64, and its mask.

    Raises:
        ValueError: for calibration inputs that are not finite, so that no factor exists.
    """
    rows, columns = matrix.shape
    weights = matrix.detach().to(torch.float64, copy=True)
    frozen = weights == 0
    dead = hessian.diagonal() == 0
    factor = inverse_factor(hessian, damping)
    keep = torch.ones_like(frozen)
    if asked.of:
        block = -(-block // asked.of) * asked.of
    starts = range(0, columns, block)
    widths = [min(block, columns - start) for start in starts]
    total = asked.zeros(matrix.numel()) if zeros is None else zeros
    quotas = shares(total, [rows * width for width in widths])
    due = 0  # zeros that earlier blocks had too many of (negative) or too few
    for start, width, quota in zip(starts, widths, quotas, strict=True):
        here = slice(start, start + width)
        part, upper = weights[:, here], factor[here, here]
        diagonal = upper.diagonal()
        fixed = frozen[:, here]
        if mask is not None:
            kept = mask[:, here] & ~fixed
        elif asked.of:
            kept = torch.ones_like(fixed)  # chosen below, when a group's first column is reached
        else:
            scores = (part / diagonal).square().masked_fill(dead[here], 0.0).masked_fill(fixed, -1.0)
            count = min(max(quota + due, int(fixed.sum())), scores.numel())
            due += quota - count
            kept = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
            kept[scores.flatten().argsort(stable=True)[:count]] = False
            kept = kept.view(scores.shape)
        errors = torch.zeros_like(part)
        for column in range(width):
            if mask is None and asked.of and asked.keep and column % asked.of == 0:
                group = slice(column, column + asked.of)
                scores = (part[:, group] / diagonal[group]).square().masked_fill(dead[here][group], 0.0)
                ranks = scores.masked_fill(fixed[:, group], -1.0).argsort(dim=1, stable=True).argsort(dim=1)
                kept[:, group] = (ranks >= asked.of - asked.keep) & ~fixed[:, group]
            error = part[:, column].masked_fill(kept[:, column], 0.0) / diagonal[column]
            change = error[:, None] * upper[column, column:]
            part[:, column:] -= change.masked_fill_(fixed[:, column:], 0.0)
            errors[:, column] = error
        part.masked_fill_(~kept, 0.0)  # exactly zero, without the rounding of w - w
        after = slice(start + width, None)
        weights[:, after] -= (errors @ factor[here, after]).masked_fill_(frozen[:, after], 0.0)
        keep[:, here] = kept
    return weights, keep


def inverse_factor(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """Return the upper Cholesky factor U of the inverse of the damped Hessian, ``H^-1 = U^T U``, in float64.

    Inputs that never occur get a diagonal entry of the mean, so that they do not disturb the others.

    Raises:
        ValueError: if there is none even with much more damping, as of inputs that are not finite.
    """
    moments = hessian.to(torch.float64, copy=True)
    diagonal = moments.diagonal()
    dead = diagonal == 0
    if bool(dead.all()):
        return torch.eye(len(moments), dtype=torch.float64, device=moments.device)
    mean = diagonal[~dead].mean()
    diagonal[dead] = mean
    for step in range(6):
        damped = moments + damping * 10**step * mean * torch.eye(len(moments), dtype=torch.float64, device=moments.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed) and bool(upper.isfinite().all()):
            return upper
    raise ValueError("the calibration inputs of the layer have no finite second moments: NaN or infinite activations")


def relative_error(before: Tensor, after: Tensor, hessian: Tensor) -> float:
    """The squared change of the layer's output over that of the output itself, both over the calibration inputs."""
    before, moments = before.detach().to(hessian.dtype), hessian
    change = before - after.to(hessian.dtype)
    whole = float((before @ moments).mul(before).sum())
    return float((change @ moments).mul(change).sum()) / whole if whole > 0 else 0.0
