r"""Outputs of a classifier and their losses: nominal classes, and ordered levels in three ways.

With levels ``0 .. K-1``, ``y`` the label, ``p_k`` its probability (a hard label has one ``p_k = 1``), ``P_k = sum_{l>k} p_l``,
logits ``z`` and ``s`` the logistic function, the loss of one sample is

.. code-block:: text

    nominal          -sum_k p_k log softmax(z)_k                                  K logits
    corn             -sum_k P_k log s(z_k) + p_k log(1 - s(z_k)), k < K-1         K-1 logits, s(z_k) = P(y > k | y >= k)
    coral            -sum_k P_k log s(z_k) + (1 - P_k) log(1 - s(z_k))            z_k = w.f + b_k = logit P(y > k)
    cumulative_link  -sum_k p_k log(s(z_{k-1}) - s(z_k)), z_{-1} = inf, ...       z_k = w.f - t_k, t_0 < t_1 < ...

CORN: Shi et al., "Deep neural networks for rank-consistent ordinal regression based on conditional probabilities"; its loss is
divided by the number of (sample, task) pairs, here ``sum_k P(y >= k)``, the others by the number of samples. CORAL: Cao et
al., "Rank consistent ordinal regression for neural networks". Cumulative link: McCullagh, "Regression models for ordinal
data".

Class weights multiply a sample's loss and do not enter the divisor.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALLEST_GAP = 1e-4  # between thresholds, in logits: the log of a level's probability stays finite


class Output(nn.Module):
    """A linear layer on a clip's features, and what its logits mean.

    Args:
        features: F.
        levels: K, 2 at least.

    Attributes:
        class_weights: (K,), ones unless :meth:`set_class_weights` was called; no part of the state dict.

    Raises:
        ValueError: for fewer than 2 levels.
    """

    ordinal = True
    class_weights: Tensor

    def __init__(self, features: int, levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"an output has 2 levels at least, got {levels}")
        self.levels = levels
        self.register_buffer("class_weights", torch.ones(levels), persistent=False)

    def set_class_weights(self, weights: Sequence[float]) -> None:
        """Weight the loss of samples by their level.

        Raises:
            ValueError: unless there is a weight that is not negative for each level.
        """
        if len(weights) != self.levels or not all(weight >= 0 for weight in weights):
            raise ValueError(f"class weights must be {self.levels} numbers that are not negative, got {list(weights)}")
        self.class_weights.copy_(torch.as_tensor(weights))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of the samples that have a label; 0 with a gradient of 0 if none has.

        Args:
            logits: what :meth:`forward` returned.
            targets: (N,) levels, -1 where the label is missing; or (N, K) probabilities, NaN where they are missing.

        Raises:
            ValueError: for targets of another shape, or (on a CPU, where looking costs nothing) a level out of range.
        """
        target, known = target_probabilities(targets, self.levels)
        logits = logits.float()  # under autocast the linear layer returns half precision
        losses, divisors = self._losses(logits, target)
        weights = (target @ self.class_weights) * known
        return (losses * weights).sum() / (divisors * known).sum().clamp(min=1)

    @abstractmethod
    def _losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) losses before weights, and what each sample adds to the divisor."""

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of the levels, (N, K)."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """Levels, (N,) int64."""


class Nominal(Output):
    """Classes without order: (N, F) -> (N, K)."""

    ordinal = False

    def __init__(self, features: int, levels: int) -> None:
        super().__init__(features, levels)
        self.fc = nn.Linear(features, levels)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(features)
        return logits

    def _losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return F.cross_entropy(logits, target, reduction="none"), torch.ones_like(logits[:, 0])

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(1)

    def predict(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)


class Corn(Output):
    """Ordered levels by conditional tasks: (N, F) -> (N, K - 1)."""

    def __init__(self, features: int, levels: int) -> None:
        super().__init__(features, levels)
        self.fc = nn.Linear(features, levels - 1)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(features)
        return logits

    def _losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        above = _above(target)
        losses = -(above * F.logsigmoid(logits) + target[:, :-1] * F.logsigmoid(-logits)).sum(1)
        return losses, (above + target[:, :-1]).sum(1)

    def probabilities(self, logits: Tensor) -> Tensor:
        return _differences(logits.float().sigmoid().cumprod(1))

    def predict(self, logits: Tensor) -> Tensor:
        return (logits.float().sigmoid().cumprod(1) > 0.5).sum(1)


class _Cumulative(Output):
    """Logits of P(y > k), from one score and a bias for each k."""

    def __init__(self, features: int, levels: int) -> None:
        super().__init__(features, levels)
        self.score = nn.Linear(features, 1, bias=False)

    def probabilities(self, logits: Tensor) -> Tensor:
        return _differences(logits.float().sigmoid())

    def predict(self, logits: Tensor) -> Tensor:
        return (logits > 0).sum(1)


class Coral(_Cumulative):
    """Ordered levels by binary tasks that share their weights: (N, F) -> (N, K - 1)."""

    def __init__(self, features: int, levels: int) -> None:
        super().__init__(features, levels)
        # Descending from 1 to 0, as its authors begin.
        self.biases = nn.Parameter(torch.arange(levels - 1, 0, -1).float() / (levels - 1))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.score(features) + self.biases
        return logits

    def _losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        above = _above(target)
        losses = F.binary_cross_entropy_with_logits(logits, above, reduction="none").sum(1)
        return losses, torch.ones_like(losses)


class CumulativeLink(_Cumulative):
    """Ordered levels by thresholds on a score (proportional odds): (N, F) -> (N, K - 1).

    The thresholds begin evenly spaced by 1 around 0, and stay in order: each is the one before plus a softplus.
    """

    def __init__(self, features: int, levels: int) -> None:
        super().__init__(features, levels)
        self.first = nn.Parameter(torch.tensor(-(levels - 2) / 2))
        self.gaps = nn.Parameter(torch.full((levels - 2,), 1.0).expm1().log())  # softplus(gaps) = 1

    def thresholds(self) -> Tensor:
        """(K - 1,), ascending."""
        steps = F.softplus(self.gaps).clamp(min=_SMALLEST_GAP)
        return torch.cat([self.first[None], self.first + steps.cumsum(0)])

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.score(features) - self.thresholds()
        return logits

    def _losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)): no difference of nearly equal numbers, whatever the score is.
        upper, lower = F.pad(F.logsigmoid(logits), (1, 0)), F.pad(F.logsigmoid(-logits), (0, 1))
        gaps = (logits[:, :-1] - logits[:, 1:]).clamp(min=_SMALLEST_GAP)
        log_p = upper + lower + F.pad((-torch.expm1(-gaps)).log(), (1, 1))
        losses = -(target * log_p).sum(1)
        return losses, torch.ones_like(losses)


OUTPUTS: dict[str, type[Output]] = {"nominal": Nominal, "corn": Corn, "coral": Coral, "cumulative_link": CumulativeLink}


def make_output(features: int, levels: int, kind: str = "nominal") -> Output:
    """Make an output of a kind in :data:`OUTPUTS`.

    Raises:
        ValueError: for another kind, or fewer than 2 levels.
    """
    if kind not in OUTPUTS:
        raise ValueError(f"an output's kind is one of {', '.join(OUTPUTS)}, got {kind!r}")
    return OUTPUTS[kind](features, levels)


def target_probabilities(targets: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Levels or probabilities -> (N, K) float probabilities, zeros where they are missing, and (N,) 1 where they are known.

    Raises:
        ValueError: see :meth:`Output.loss`.
    """
    if targets.is_floating_point():
        if targets.ndim != 2 or targets.shape[1] != levels:
            raise ValueError(f"soft labels must be of shape (N, {levels}), got {tuple(targets.shape)}")
        known = ~targets.isnan().any(1)
        return targets.float().where(known[:, None], 0.0), known.float()
    if targets.ndim != 1:
        raise ValueError(f"labels must be of shape (N,), got {tuple(targets.shape)}")
    if type(targets) is Tensor and targets.device.type == "cpu" and bool(((targets < -1) | (targets >= levels)).any()):
        raise ValueError(f"labels must be in 0..{levels - 1}, or -1 where missing, got {targets.tolist()}")
    one_hot = targets[:, None] == torch.arange(levels, device=targets.device)
    return one_hot.float(), (targets >= 0).float()


def _above(target: Tensor) -> Tensor:
    """(N, K) probabilities -> (N, K - 1), ``P(y > k)``."""
    return target.flip(1).cumsum(1).flip(1)[:, 1:]


def _differences(above: Tensor) -> Tensor:
    """``P(y > k)`` -> (N, K); CORAL's need not descend: what then would be negative is 0."""
    bounds = F.pad(F.pad(above, (1, 0), value=1.0), (0, 1), value=0.0)
    differences = (bounds[:, :-1] - bounds[:, 1:]).clamp(min=0)
    return differences / differences.sum(1, keepdim=True)
