"""How many zeros each weight gets: the same share everywhere, or Erdős-Rényi-Kernel; always in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

DISTRIBUTIONS = ("uniform", "erk")
_ROUNDING = 1e-6  # 0.29 * 100 is 28.999999999999996 in floating point: such a product counts as whole


def check_sparsity(sparsity: float, name: str = "sparsity") -> float:
    """Return a fraction of zeros, 0 <= sparsity < 1.

    Raises:
        ValueError: for another number, or no number.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise ValueError(
            f"{name} is the fraction of zeros, at least 0 and less than 1, got {sparsity!r}"
            + (": at 1 no weight would be left" if sparsity == 1 and not isinstance(sparsity, bool) else "")
        )
    return float(sparsity)


def count_zeros(numel: int, sparsity: float) -> int:
    """Zeros among ``numel`` weights: ``floor(sparsity * numel)``, as RigL counts them."""
    return math.floor(sparsity * numel + _ROUNDING)


def zeros_of(weights: Mapping[str, Tensor], sparsity: float, distribution: str = "uniform") -> dict[str, int]:
    """The number of zeros of each weight.

    Args:
        weights: of shape (out, in, ...), by name.
        sparsity: fraction of zeros among all of them, 0 <= sparsity < 1.
        distribution: ``"uniform"`` gives each weight this fraction, rounded down; ``"erk"`` is Erdős-Rényi-Kernel (RigL,
            arXiv 1911.11134, section 3), see :func:`erk_densities`, with the total rounded down.

    Raises:
        ValueError: for a sparsity out of its range, another distribution, no weights, or a weight that would have only zeros.
    """
    check_sparsity(sparsity)
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    if not weights:
        raise ValueError("there is no weight to make sparse: every one stays dense")
    if distribution == "uniform":
        zeros = {name: count_zeros(weight.numel(), sparsity) for name, weight in weights.items()}
    else:
        zeros = _whole_zeros(weights, erk_densities(weights, sparsity), sparsity)
    check_zeros_left(weights, zeros)
    return zeros


def check_zeros_left(weights: Mapping[str, Tensor], zeros: Mapping[str, int]) -> None:
    """Refuse numbers of zeros that leave a layer without a weight.

    Raises:
        ValueError: naming the layer.
    """
    for name, weight in weights.items():
        if zeros[name] >= weight.numel():
            raise ValueError(
                f"{name} would be left without a weight: {zeros[name]} zeros of {weight.numel()}. Take a lower sparsity, or "
                f"keep it dense (dense=[{name!r}])"
            )


def erk_densities(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, float]:
    r"""Densities by Erdős-Rényi-Kernel: in proportion to ``sum(shape) / prod(shape)``, none above 1.

    .. code-block:: text

        d_l = min(1, eps * p_l)     p_l = sum(shape_l) / prod(shape_l)     sum_l d_l * n_l = (1 - sparsity) * sum_l n_l

    A layer that would be denser than dense becomes dense, and ``eps`` is solved again for the others.
    """
    numel = {name: weight.numel() for name, weight in weights.items()}
    scores = {name: sum(weight.shape) / weight.numel() for name, weight in weights.items()}
    wanted = (1 - sparsity) * sum(numel.values())
    dense: set[str] = set()
    while True:
        left = [name for name in weights if name not in dense]
        free = wanted - sum(numel[name] for name in dense)
        eps = free / sum(scores[name] * numel[name] for name in left) if left else 0.0
        full = {name for name in left if eps * scores[name] > 1}
        if not full:
            return {name: 1.0 if name in dense else eps * scores[name] for name in weights}
        dense |= full


def _whole_zeros(weights: Mapping[str, Tensor], densities: Mapping[str, float], sparsity: float) -> dict[str, int]:
    """Whole numbers of zeros that add up to that of the whole network: by largest remainders."""
    wanted = {name: (1 - densities[name]) * weight.numel() for name, weight in weights.items()}
    zeros = {name: math.floor(count + _ROUNDING) for name, count in wanted.items()}
    missing = count_zeros(sum(weight.numel() for weight in weights.values()), sparsity) - sum(zeros.values())
    by_remainder = sorted(weights, key=lambda name: zeros[name] - wanted[name])
    for name in by_remainder[:missing]:
        zeros[name] += 1
    return zeros
