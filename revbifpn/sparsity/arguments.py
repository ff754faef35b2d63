"""What :class:`.SparseTraining` is given: looked at, and refused where it does not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from revbifpn.sparsity.masks import MaskError

END_SHARE = 0.75  # of the training, after which masks stay as they are


def check_state(state: Mapping[str, Any] | None) -> None:
    """Refuse what is no state of a sparse training.

    Raises:
        MaskError: naming what it lacks.
    """
    if state is not None and (missing := {"masks", "zeros", "steps", "generator", "lifted"} - state.keys()):
        raise MaskError(f"this is no state of SparseTraining: it has no {', '.join(sorted(missing))}")


def inner_network(model: nn.Module) -> nn.Module:
    """The network in DDP, ``DataParallel`` and ``torch.compile``."""
    while inner := next((getattr(model, key) for key in ("module", "_orig_mod") if _wraps(model, key)), None):
        model = inner
    return model


def _wraps(model: nn.Module, key: str) -> bool:
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return isinstance(model, wrappers) if key == "module" else hasattr(model, key)


def last_step(method: str, end: int | None, total_steps: int | None) -> int:
    """The step after which masks stay as they are, 0 for static ones.

    Raises:
        ValueError: if nothing says it.
    """
    if method == "static":
        return 0
    if end is not None:
        return end
    if total_steps is None:
        raise ValueError(f"method {method!r} changes masks up to a step: give total_steps, or end")
    return int(END_SHARE * total_steps)


def check_holds(optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> None:
    """Refuse an optimizer that does not train the weights, and weights that are spread over processes.

    Raises:
        ValueError: naming the first such weight.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if left_out := [name for name, weight in weights.items() if id(weight) not in held]:
        raise ValueError(
            f"the optimizer does not train {left_out[0]} ({len(left_out)} weights in all): it was made for another network, "
            "or before this one was changed. Make the optimizer of the network as it is now"
        )
    if sharded := [name for name, weight in weights.items() if hasattr(weight, "device_mesh")]:
        raise ValueError(f"{sharded[0]} is sharded (FSDP): sparse training works in one process and with DDP")
