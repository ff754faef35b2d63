r"""What a sparse network computes at least, and what its training does: floating-point operations, in theory.

An addition and a multiplication are two operations. A ``Conv2d`` or ``Linear`` with a mask of density d counts d times what it
counts dense (Sparse-IFT, arXiv 2303.11525). No kernel for ordinary processors or graphics cards reaches this: zeros are
multiplied like other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from revbifpn.sparsity.masks import density


@dataclass(frozen=True)
class Flops:
    """Operations of one forward pass.

    Attributes:
        total: of the dense network.
        layers: of the weight of each ``Conv2d`` and ``Linear``, by its name in ``named_parameters``; a layer that is called
            more than once counts each time.
    """

    total: int
    layers: dict[str, int]

    def sparse(self, densities: Mapping[str, float]) -> float:
        """Operations where the named weights have such densities and all others are dense."""
        return self.total - sum(self.layers.get(name, 0) * (1 - kept) for name, kept in densities.items())

    def masked(self, masks: Mapping[str, Tensor]) -> float:
        """Operations with these masks."""
        return self.sparse({name: density([mask]) for name, mask in masks.items()})

    def density_for(self, budget: float, names: Sequence[str]) -> float:
        """The density of the named weights, the same for all, with which the network has ``budget`` operations.

        Raises:
            ValueError: if what stays dense has more operations than that; or if the dense network has less.
        """
        maskable = sum(self.layers.get(name, 0) for name in names)
        fixed = self.total - maskable
        if fixed >= budget:
            raise ValueError(
                f"what stays dense has {fixed:,} operations, which leaves nothing of {budget:,.0f} for the sparse weights: "
                "take a lower sparsity, or let more become sparse"
            )
        kept = (budget - fixed) / maskable if maskable else 2.0
        if kept > 1 + 1e-9:
            raise ValueError(f"the dense network has {self.total:,} operations, less than the {budget:,.0f} asked for")
        return min(kept, 1.0)


@torch.no_grad()
def count_flops(model: nn.Module, input_size: Sequence[int]) -> Flops:
    """Count the operations of one forward pass in eval mode, without computing it.

    Args:
        model: any network of one tensor; it is left as it is.
        input_size: shape of the input, with the batch: ``(1, 3, 224, 224)``.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers: dict[str, int] = {}

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name, weight = found[module]
        if isinstance(module, nn.Conv2d):
            flops = conv_flop_count(list(inputs[0].shape), list(weight.shape), list(output.shape))
        else:
            flops = 2 * output.numel() * weight.shape[1]
        layers[name] = layers.get(name, 0) + int(flops)

    found: dict[nn.Module, tuple[str, Tensor]] = {
        module: (names[id(module.weight)], module.weight)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and id(module.weight) in names
    }
    hooks = [module.register_forward_hook(count) for module in found]
    training = {module: module.training for module in model.modules()}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        model.eval()
        meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
        with FlopCounterMode(display=False) as counter:
            functional_call(model, meta, (torch.empty(*input_size, device="meta"),), strict=False)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return Flops(int(counter.get_total_flops()), layers)


def training_flops(
    dense: float, sparse: float, steps: int, method: str = "static", update_every: int = 100, end: int | None = None
) -> float:
    r"""Operations of a training, in theory; backward counts twice a forward pass.

    .. code-block:: text

        dense, or static and SET     3 f_S for each step (f_S = f_D if dense)
        RigL, before ``end``         (3 f_S T + 2 f_S + f_D) / (T + 1), with T = update_every (RigL, appendix G)

    Gradual pruning is not counted here: its density changes.

    Args:
        dense, sparse: operations of one step's forward pass, for its whole batch.
        steps: of the training.
        end: after which masks stay; by default none do.

    Raises:
        ValueError: for another method.
    """
    if method not in ("static", "set", "rigl"):
        raise ValueError(f"training_flops knows static, set and rigl, got {method!r}")
    changing = min(steps, steps if end is None else end) if method == "rigl" else 0
    each = (3 * sparse * update_every + 2 * sparse + dense) / (update_every + 1)
    return changing * each + (steps - changing) * 3 * sparse
