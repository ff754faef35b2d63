"""One-shot pruning of a trained network: no training, a few hundred images, one pass through the network.

All calibration images go through the network together. Each layer is pruned at the moment when it is computed, by inputs that
come from the layers pruned before it, and then computes with its new weights. So one forward pass does what would else take
one for each layer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from revbifpn.sparsity import criteria
from revbifpn.sparsity.calibration import LayerCall, LayerCalls, positions_of, second_moments
from revbifpn.sparsity.criteria import Amount, amount, as_matrix, as_weight, check_pattern, shares
from revbifpn.sparsity.repair import modes_kept, repair_statistics
from revbifpn.sparsity.selection import select_weights
from revbifpn.sparsity.sparsegpt import DAMPING, relative_error, sparsegpt

Method = Literal["sparsegpt", "wanda", "magnitude"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class PrunedLayer:
    """What became of one layer.

    Attributes:
        name: of its weight.
        shape: of its weight.
        zeros: how many of its weights are zero.
        error: squared change of its output over the output itself, on the inputs that it got; None without images.
        positions: how many inputs that was computed from.
    """

    name: str
    shape: tuple[int, ...]
    zeros: int
    error: float | None
    positions: int

    @property
    def weights(self) -> int:
        """Numbers in the weight."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """The fraction of its weights that are left."""
        return 1 - self.zeros / self.weights


@dataclass(frozen=True)
class Pruning:
    """What a pruning did.

    Attributes:
        method, amount: how, and how much.
        masks: of every pruned weight, by its name in ``named_parameters``; True where a weight is kept.
        layers: in the order in which the network computes them.
        repaired: number of batch norms whose statistics were measured anew.
    """

    method: Method
    amount: Amount
    masks: dict[str, Tensor]
    layers: list[PrunedLayer] = field(repr=False)
    repaired: int = 0

    @property
    def zeros(self) -> int:
        """Zeros in the pruned layers."""
        return sum(layer.zeros for layer in self.layers)

    def table(self) -> str:
        """The layers in Markdown."""
        lines = ["| weight | shape | weights | kept | density | error of the output |", "|---|---|---|---|---|---|"]
        for layer in self.layers:
            error = "" if layer.error is None else f"{100 * layer.error:.2f}%"
            shape, kept = "x".join(map(str, layer.shape)), layer.weights - layer.zeros
            lines.append(f"| {layer.name} | {shape} | {layer.weights:,} | {kept:,} | {layer.density:.4f} | {error} |")
        weights = sum(layer.weights for layer in self.layers)
        lines.append(f"| all | | {weights:,} | {weights - self.zeros:,} | {1 - self.zeros / weights:.4f} | |")
        return "\n".join(lines)


def prune(
    model: nn.Module,
    images: Tensor | None,
    sparsity: float | str = 0.5,
    *,
    method: Method = "sparsegpt",
    dense: Sequence[str] = (),
    repair: bool = True,
    positions: int = 32768,
    damping: float = DAMPING,
    repair_batch: int = 64,
    seed: int = 0,
) -> Pruning:
    """Prune the convolutions and linear layers of a trained network, each by the same amount. Its weights change in place.

    What stays dense is said by :func:`.select_weights`. Keys and shapes of the state dict stay as they are. Weights that are
    zero already stay zero, so that a network may be pruned again to a higher sparsity.

    Args:
        model: any network that is called with a batch of images; it is computed in eval mode.
        images: for calibration, (N, C, H, W), prepared as in the network's training: a hundred or more. None for "magnitude"
            alone, which needs none; then nothing is repaired, and errors are not known.
        sparsity: fraction of zeros in each layer, or an n:m pattern such as ``"2:4"``.
        method: ``"sparsegpt"`` (chooses by second moments of the inputs, and updates what stays), ``"wanda"`` or
            ``"magnitude"`` (choose, and leave the others as they are).
        dense: patterns of ``fnmatch`` for further weights that stay dense.
        repair: measure the running statistics of batch norms anew with ``images``.
        positions: the most inputs of a layer (pixels of all images) that its second moments are computed from.
        damping: of SparseGPT, see :func:`.sparsegpt`.
        repair_batch: images in a batch of the repair, at most.
        seed: of the choice of positions.

    Raises:
        ValueError: for arguments out of their range, a pattern that does not fit a layer or matches nothing, images that the
            model does not take or that are not finite, or a selected weight that the images do not reach. Nothing is changed
            then.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if positions < 1 or repair_batch < 2 or damping <= 0:
        raise ValueError(
            f"positions must be at least 1, repair_batch 2, and damping above 0; got {positions}, {repair_batch}, {damping}"
        )
    asked = amount(sparsity)
    weights = select_weights(model, dense)
    if not weights:
        raise ValueError(f"{type(model).__name__} has no weight to prune: all stay dense")
    for name, weight in weights.items():
        check_pattern(name, weight, asked)
        if not bool(weight.any()):
            raise ValueError(f"{name} would be left without a weight: all are zero already. Leave it dense (dense=[{name!r}])")
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    run = _Run(model, weights, before, asked, method, positions, damping, seed)
    repaired = 0
    with modes_kept(model), torch.no_grad():
        model.eval()
        try:
            if images is None:
                run.without_images()
            else:
                run.check(images)
                run.forward(images)
                if repair:
                    repaired = repair_statistics(model, images.tensor_split(-(-len(images) // repair_batch)))
        except BaseException:
            for name, weight in weights.items():
                weight.copy_(before[name])
            raise
    masks = {name: run.masks[name] for name in weights}
    return Pruning(method, asked, masks, list(run.layers.values()), repaired)


class _Run:
    """One pruning: the layers that were reached so far."""

    def __init__(
        self,
        model: nn.Module,
        weights: dict[str, nn.Parameter],
        before: dict[str, Tensor],
        asked: Amount,
        method: Method,
        positions: int,
        damping: float,
        seed: int,
    ) -> None:
        self.model, self.weights, self.before = model, weights, before
        self.asked, self.method, self.positions, self.damping = asked, method, positions, damping
        self.generator = torch.Generator().manual_seed(seed)
        self.uses: Counter[str] = Counter()
        self.moments: dict[str, tuple[Tensor, int]] = {}  # of weights that are used several times
        self.masks: dict[str, Tensor] = {}
        self.layers: dict[str, PrunedLayer] = {}

    def check(self, images: Tensor) -> None:
        """Send one image through, count how often each weight is used, and refuse what cannot be calibrated."""
        name = type(self.model).__name__
        shape = tuple(images.shape)
        if images.ndim != 4 or not images.is_floating_point() or not len(images):
            raise ValueError(f"calibration images must be floats of shape (N, C, H, W), got {images.dtype} {shape}")
        if not bool(images.isfinite().all()):
            raise ValueError("calibration images must be finite, and some have NaN or infinite values")
        with LayerCalls(self.weights, lambda weight, call: self.uses.update([weight])):
            try:
                self.model(images[:1])
            except Exception as error:
                message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise ValueError(f"calibration images of shape {shape} do not go through {name}: {message}") from error
        if unseen := [weight for weight in self.weights if weight not in self.uses]:
            raise ValueError(
                f"{len(unseen)} weights of {name} are not reached by the calibration images, or their layers compute with "
                f"another tensor than the parameter: {', '.join(unseen[:3])}{', ...' if len(unseen) > 3 else ''}. "
                "Leave them dense (dense=[...])"
            )

    def forward(self, images: Tensor) -> None:
        """Send all images through, and prune each layer when it is reached."""
        with LayerCalls(self.weights, self._reached):
            self.model(images)

    def without_images(self) -> None:
        """Prune by magnitude, which needs no inputs."""
        if self.method != "magnitude":
            raise ValueError(f"{self.method!r} needs calibration images; only 'magnitude' does without")
        for name in self.weights:
            self._prune(name, None, 0)

    def _reached(self, name: str, call: LayerCall) -> None:
        total = positions_of(call)
        sums, count = second_moments(call, max(1, self.positions // self.uses[name]), self.generator)
        sums *= total / count  # every use counts by its positions
        if self.uses[name] > 1:
            earlier, counted = self.moments.get(name, (torch.zeros_like(sums), 0))
            sums, count = earlier + sums, counted + count
            self.moments[name] = sums, count
        if not bool(sums.isfinite().all()):
            raise ValueError(f"the inputs of {name} are not finite: NaN or infinite activations with these images")
        self._prune(name, sums, count)

    def _prune(self, name: str, moments: Tensor | None, count: int) -> None:
        """Prune a weight as it was at first; one that is used again is pruned again, by the inputs of all its uses."""
        weight, before = self.weights[name], self.before[name]
        groups = 1 if moments is None else len(moments)
        matrices = as_matrix(before).chunk(groups)
        zeros = shares(self.asked.zeros(before.numel()), [matrix.numel() for matrix in matrices])
        if self.method == "magnitude":  # the whole layer competes, across its groups
            masks = list(criteria.magnitude_mask(torch.cat(matrices), self.asked).chunk(groups))
            pruned = [matrix.masked_fill(~mask, 0.0) for matrix, mask in zip(matrices, masks, strict=True)]
        else:
            assert moments is not None
            choose = self._sparsegpt if self.method == "sparsegpt" else self._wanda
            results = [choose(*group) for group in zip(matrices, moments, zeros, strict=True)]
            pruned, masks = [matrix for matrix, _ in results], [mask for _, mask in results]
        weight.copy_(as_weight(torch.cat(pruned), before.shape))
        self.masks[name] = as_weight(torch.cat(masks), before.shape)
        error = None
        if moments is not None:
            error = _error(matrices, as_matrix(weight).chunk(groups), moments)
        found = int((weight == 0).sum())
        self.layers[name] = PrunedLayer(name, tuple(before.shape), found, error, count)

    def _sparsegpt(self, matrix: Tensor, moments: Tensor, zeros: int) -> tuple[Tensor, Tensor]:
        return sparsegpt(matrix, moments, self.asked, zeros=zeros, damping=self.damping)

    def _wanda(self, matrix: Tensor, moments: Tensor, zeros: int) -> tuple[Tensor, Tensor]:
        mask = criteria.wanda_mask(matrix, moments.diagonal().sqrt(), self.asked, zeros)
        return matrix.masked_fill(~mask, 0.0), mask


def _error(before: Sequence[Tensor], after: Sequence[Tensor], moments: Tensor) -> float:
    """The relative error of a whole layer: of its groups by their part in the output."""
    changes = wholes = 0.0
    for old, new, group in zip(before, after, moments, strict=True):
        whole = float((old.to(group.dtype) @ group).mul(old).sum())
        wholes += whole
        changes += relative_error(old, new, group) * whole
    return changes / wholes if wholes > 0 else 0.0
