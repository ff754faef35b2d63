"""Which weights of a layer go: how much is pruned, exact counts, and the masks of magnitude and of Wanda.

A layer's weight is a matrix here, (rows, columns): a row for each output channel, a column for each input that it reads. Of a
convolution the columns are in the order kernel row, kernel column, input channel of the group (:func:`.as_matrix`), so that
the groups of an n:m pattern lie along the input channels, as the tensor cores of GPUs read them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from revbifpn.sparsity.distribution import check_sparsity, count_zeros
from revbifpn.sparsity.masks import keep_largest


@dataclass(frozen=True)
class Amount:
    """How much of each layer is pruned.

    Attributes:
        sparsity: fraction of the weights that become zero.
        keep, of: of an n:m pattern, n kept weights of each m consecutive ones; None for an unstructured choice.
    """

    sparsity: float
    keep: int | None = None
    of: int | None = None

    def zeros(self, weights: int) -> int:
        """How many of so many weights go."""
        return weights - weights // self.of * self.keep if self.of and self.keep else count_zeros(weights, self.sparsity)

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}" if self.of else f"{100 * self.sparsity:g}%"


def amount(sparsity: float | str) -> Amount:
    """Return an amount from a fraction (``0.5``) or an n:m pattern (``"2:4"``: two of four stay).

    Raises:
        ValueError: for a fraction outside 0..1, for 1 itself, which would leave no weight, and for a pattern that keeps
            nothing or more than there is.
    """
    if isinstance(sparsity, str):
        if match := re.fullmatch(r"(\d+):(\d+)", sparsity.strip()):
            keep, of = int(match[1]), int(match[2])
            if not 0 < keep <= of:
                raise ValueError(f"the pattern {sparsity!r} must keep 1 to {of} of {of} weights, as 2:4 keeps two of four")
            return Amount(1 - keep / of, keep, of)
        try:
            sparsity = float(sparsity)
        except ValueError:
            message = f"sparsity must be a fraction such as 0.5, or a pattern such as 2:4, got {sparsity!r}"
            raise ValueError(message) from None
    return Amount(check_sparsity(sparsity))


def check_pattern(name: str, weight: Tensor, asked: Amount) -> None:
    """Check that a layer's inputs in a group are a multiple of an n:m pattern.

    Raises:
        ValueError: if they are not.
    """
    if asked.of and weight.shape[1] % asked.of:
        raise ValueError(
            f"{name} has {weight.shape[1]} inputs in each group, no multiple of {asked.of}, so the pattern {asked} does not "
            f"fit: leave it dense (dense=[{name!r}])"
        )


def shares(total: int, sizes: list[int]) -> list[int]:
    """Split ``total`` over parts in proportion to their sizes; the sum is exact, each part at most 1 off its share."""
    whole = sum(sizes)
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    upto = [(2 * total * end + whole) // (2 * whole) for end in ends]  # rounded, by integers alone
    return [b - a for a, b in pairwise(upto)]


def groups_of(module: nn.Module) -> int:
    """The number of groups of a convolution; 1 for a linear layer."""
    return module.groups if isinstance(module, nn.Conv2d) else 1


def as_matrix(weight: Tensor) -> Tensor:
    """(out, in, kh, kw) -> (out, kh * kw * in); a linear layer's (out, in) stays as it is."""
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def as_weight(matrix: Tensor, shape: torch.Size) -> Tensor:
    """Turn :func:`as_matrix` round."""
    if len(shape) == 2:
        return matrix
    out, inputs, height, width = shape
    return matrix.view(out, height, width, inputs).permute(0, 3, 1, 2).contiguous()


def magnitude_mask(matrix: Tensor, asked: Amount) -> Tensor:
    """Keep the largest weights of the whole matrix (or of each n:m group). Returns a mask, True where a weight is kept."""
    return keep_highest(matrix.abs(), asked)


def wanda_mask(matrix: Tensor, norms: Tensor, asked: Amount, zeros: int | None = None) -> Tensor:
    """Keep in each row those of the largest ``|weight| * norm of the input`` (Wanda, arXiv 2306.11695, equation 1).

    Args:
        matrix: (rows, columns).
        norms: L2 norm of each column's input, (columns,).
        zeros: how many weights of the matrix go; None for what ``asked`` says.

    Returns:
        A mask, True where a weight is kept.
    """
    scores = matrix.abs().to(norms.dtype) * norms
    if asked.of:
        return keep_highest(scores, asked)
    total = asked.zeros(matrix.numel()) if zeros is None else zeros
    counts = torch.tensor(shares(total, [matrix.shape[1]] * len(matrix)), device=matrix.device)
    ranks = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks >= counts[:, None]


def keep_highest(scores: Tensor, asked: Amount, zeros: int | None = None) -> Tensor:
    """Keep the highest scores of a matrix, so that exactly ``zeros`` go, or n of each m consecutive ones of a row."""
    if asked.of and asked.keep:
        grouped = scores.reshape(len(scores), -1, asked.of)
        ranks = grouped.argsort(dim=2, stable=True).argsort(dim=2)
        return (ranks >= asked.of - asked.keep).view(scores.shape)
    count = asked.zeros(scores.numel()) if zeros is None else zeros
    return keep_largest(scores, scores.numel() - count)
