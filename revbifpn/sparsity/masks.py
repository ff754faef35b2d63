"""Masks: ``dict[str, Tensor]`` of ``torch.bool`` by the names of ``named_parameters``; True is a weight that is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]


class MaskError(ValueError):
    """Masks that do not belong to a network, or to its weights."""


def random_mask(shape: Sequence[int], zeros: int, generator: torch.Generator) -> Tensor:
    """A mask with exactly so many zeros at random places.

    Args:
        generator: of the CPU, so that a seed means the same mask on every device.
    """
    numel = torch.Size(shape).numel()
    mask = torch.ones(numel, dtype=torch.bool)
    mask[torch.randperm(numel, generator=generator)[:zeros]] = False
    return mask.view(*shape)


def magnitude_mask(weight: Tensor, zeros: int) -> Tensor:
    """A mask that drops exactly the ``zeros`` smallest weights by magnitude."""
    return keep_largest(weight.detach().abs(), weight.numel() - zeros)


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """True at exactly the ``count`` largest scores; of equal ones any."""
    flat = scores.reshape(-1)
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    mask[flat.topk(count, sorted=False).indices] = True
    return mask.view(scores.shape)


def masks_of_zeros(weights: Mapping[str, Tensor]) -> Masks:
    """The masks that weights show by their zeros, such as those of a pruned checkpoint.

    Raises:
        MaskError: for a weight that is all zeros.
    """
    masks = {name: weight.detach() != 0 for name, weight in weights.items()}
    _check_some_left(masks)
    return masks


def check_masks(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Refuse masks of another network.

    Raises:
        MaskError: naming the first difference: a name, a shape, another type than bool, or a mask that keeps nothing.
    """
    if missing := [name for name in weights if name not in masks]:
        raise MaskError(f"masks of another model: {missing[0]} has none ({len(missing)} are missing of {len(weights)})")
    if unknown := [name for name in masks if name not in weights]:
        raise MaskError(f"masks of another model: {unknown[0]} is no weight that becomes sparse here ({len(unknown)} such)")
    for name, weight in weights.items():
        mask = masks[name]
        if mask.shape != weight.shape:
            raise MaskError(f"masks of another model: {name} is {tuple(weight.shape)}, its mask {tuple(mask.shape)}")
        if mask.dtype != torch.bool:
            raise MaskError(f"the mask of {name} must be of torch.bool (True is kept), got {mask.dtype}")
    _check_some_left(masks)


def _check_some_left(masks: Mapping[str, Tensor]) -> None:
    if empty := [name for name, mask in masks.items() if not bool(mask.any())]:
        raise MaskError(f"{empty[0]} would be left without a weight: its mask keeps none")


def check_zeros(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not zero where their masks drop them.

    Raises:
        MaskError: naming the first such weight.
    """
    for name, weight in weights.items():
        if wrong := int((weight.detach()[~masks[name].to(weight.device)] != 0).sum()):
            raise MaskError(
                f"the weights' zeros and the masks disagree: {name} has {wrong} weights that its mask drops. Load the weights "
                "that were saved with the masks first"
            )


@torch.no_grad()
def apply_masks(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Set to zero, in place, what the masks drop of tensors of the same names; names without a mask are left alone."""
    for name, tensor in tensors.items():
        if name in masks:
            tensor.masked_fill_(~masks[name], 0)


def apply_to_copy(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set to zero what the masks drop in a copy of the network, such as its moving average.

    Raises:
        MaskError: if a masked weight has no parameter of its name and shape in ``module``.
    """
    parameters = dict(module.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise MaskError(f"{type(module).__name__} is no copy of the network: it has no {name} of {tuple(mask.shape)}")
    for name, mask in masks.items():
        parameter = parameters[name].detach()
        parameter.masked_fill_(~mask.to(parameter.device), 0)


def density(masks: Iterable[Tensor]) -> float:
    """The fraction of weights that are kept, 1 for no masks."""
    kept = total = 0
    for mask in masks:
        kept += int(mask.sum())
        total += mask.numel()
    return kept / total if total else 1.0
