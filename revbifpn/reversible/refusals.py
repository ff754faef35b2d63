"""What cannot be run reversibly, said by name before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn


def check_replica(module: nn.Module) -> None:
    """Refuse the copies that ``nn.DataParallel`` makes of a module for each device.

    Raises:
        RuntimeError: if ``module`` is one.
    """
    if module.__dict__.get("_is_replica"):
        raise RuntimeError(
            f"{type(module).__name__} is a replica of nn.DataParallel, which has no parameters, so a backward pass could not "
            "return gradients to them: train with torch.nn.parallel.DistributedDataParallel, one process a device"
        )


def are_transforms_active() -> bool:
    """Whether derivatives are taken by torch.func (grad, vjp, jvp, vmap) or in forward mode, not by autograd's backward."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def are_batched(grads: Iterable[Tensor | None]) -> bool:
    """Whether gradients stand for several, as vmap and ``torch.autograd.grad(..., is_grads_batched=True)`` hand them down."""
    if torch._C._are_functorch_transforms_active():
        return True
    return any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)


def refuse_transforms(what: str) -> None:
    """Say that ``what`` has no rule for them.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        f"torch.func's transforms (grad, vjp, jvp, vmap) and forward-mode derivatives of {what} are not supported: set "
        "reversible=False on the model for them (functional_call alone, with loss.backward(), works in reversible mode)"
    )
