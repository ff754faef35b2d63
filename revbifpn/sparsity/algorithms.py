r"""How masks change in training: not at all (static), SET, RigL, or gradually by magnitude.

The steps of an optimizer are counted from 1; ``t`` is the number of the step just taken. SET and RigL change the masks where
``begin < t < end`` and ``t`` is a multiple of ``update_every``. In each weight with ``n`` kept of ``N`` entries they

.. code-block:: text

    drop the k(t) kept entries of smallest magnitude,     k(t) = int(alpha(t) * n)
    alpha(t) = drop_fraction / 2 * (1 + cos(pi * (t - begin) / (end - begin)))
    grow as many elsewhere as bring n back: SET (Mocanu et al. 2018, arXiv 1707.04780) at random,
    RigL (Evci et al. 2020, arXiv 1911.11134) those with the largest gradient of the loss

An entry that was just dropped may grow again; it then keeps its value and the optimizer's state. Others begin at zero.

Gradual magnitude pruning (Zhu and Gupta 2017, arXiv 1710.01878) begins dense, and at the same steps and at ``end`` keeps the
largest entries:

.. code-block:: text

    s(t) = s * (1 - (1 - (t - begin) / (end - begin))^3)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from revbifpn.sparsity.masks import keep_largest

METHODS = ("static", "set", "rigl", "gradual")


@dataclass(frozen=True)
class Schedule:
    """A method and when it acts.

    Attributes:
        method: one of :data:`METHODS`.
        begin, end: steps between which masks change.
        update_every: steps from one change to the next.
        drop_fraction: ``drop_fraction`` of the formulas above, of SET and RigL.

    Raises:
        ValueError: for another method, numbers out of their range, or steps among which none changes a mask.
    """

    method: str
    begin: int = 0
    end: int = 0
    update_every: int = 100
    drop_fraction: float = 0.3

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.method == "static":
            return
        if not 0 < self.drop_fraction < 1:
            raise ValueError(f"drop_fraction must be above 0 and below 1, got {self.drop_fraction!r}")
        if self.update_every < 1:
            raise ValueError(f"update_every must be at least 1 step, got {self.update_every!r}")
        if not 0 <= self.begin < self.end:
            raise ValueError(f"masks change from step begin to step end, 0 <= begin < end, got {self.begin} and {self.end}")
        first = (self.begin // self.update_every + 1) * self.update_every
        if self.method != "gradual" and first >= self.end:
            raise ValueError(
                f"{self.method} would never change a mask: with update_every={self.update_every} the first change would be at "
                f"step {first}, and they end before step {self.end}. Take a smaller update_every, or method='static'"
            )

    def acts_at(self, step: int) -> bool:
        """Whether masks change after this step."""
        if self.method == "static":
            return False
        if self.method == "gradual" and step == self.end:
            return True
        return self.begin < step < self.end and step % self.update_every == 0

    def reads_gradient_at(self, step: int) -> bool:
        """Whether the change after this step needs the gradients of all entries."""
        return self.method == "rigl" and self.acts_at(step)

    def alpha(self, step: int) -> float:
        """The fraction of kept entries to drop."""
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * (step - self.begin) / (self.end - self.begin)))

    def zeros_at(self, step: int, zeros: int) -> int:
        """The number of zeros after this step, of a weight that shall have ``zeros`` in the end."""
        if self.method != "gradual":
            return zeros
        acted = step if step >= self.end else step // self.update_every * self.update_every
        progress = (min(acted, self.end) - self.begin) / (self.end - self.begin)
        return int(zeros * (1 - (1 - max(progress, 0.0)) ** 3) + 1e-6)

    def changed(
        self, step: int, weight: Tensor, mask: Tensor, zeros: int, gradient: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """The mask of one weight after this step.

        Args:
            weight: zero where ``mask`` drops.
            zeros: the number of zeros that the weight shall have in the end.
            gradient: of all entries, for RigL.
            generator: of the CPU, for SET.
        """
        if self.method == "gradual":
            # An entry that is zero by chance still comes before those that were dropped.
            scores = weight.detach().abs().masked_fill(~mask, -1)
            return keep_largest(scores, weight.numel() - self.zeros_at(step, zeros))
        wanted = weight.numel() - zeros
        kept = int(mask.sum())
        magnitudes = weight.detach().abs().masked_fill(~mask, -1)
        survivors = keep_largest(magnitudes, kept - int(self.alpha(step) * kept))
        if self.method == "rigl":
            assert gradient is not None
            scores = torch.nan_to_num(gradient.abs(), nan=0.0)
        else:
            scores = torch.rand(weight.shape, generator=generator).to(weight.device)
        grown = keep_largest(scores.masked_fill(survivors, -1), wanted - int(survivors.sum()))
        return survivors | grown
