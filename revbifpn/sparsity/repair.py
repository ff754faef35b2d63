"""Batch norms after pruning: their running statistics are those of the dense network, and are measured anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module back the training or eval mode that it has now."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def repair_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running means and variances of all batch norms by averages over ``batches``.

    Only the norms are in training mode meanwhile: dropout and stochastic depth stay off, no gradient is taken and no weight
    changes. A norm that the batches do not reach keeps its statistics, and so do all if a batch cannot be computed.
    ``torch.optim.swa_utils.update_bn`` would put the whole model into training mode.

    Args:
        batches: of images (N, C, H, W), of about equal size, as each counts the same.

    Returns:
        How many norms were repaired.

    Raises:
        ValueError: if there is no batch.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    ]
    before = [(_statistics(norm), norm.momentum) for norm in norms]
    with modes_kept(model), torch.no_grad():
        model.eval()
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain average over batches
                norm.training = True
            count = 0
            for batch in batches:
                model(batch)
                count += 1
            if not count:
                raise ValueError("the statistics of batch norms cannot be repaired without a batch of images")
        except BaseException:
            for norm, (statistics, momentum) in zip(norms, before, strict=True):
                _restore(norm, statistics)
                norm.momentum = momentum
            raise
        repaired = 0
        for norm, (statistics, momentum) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and int(norm.num_batches_tracked):
                norm.num_batches_tracked.copy_(statistics["num_batches_tracked"])
                repaired += 1
            else:
                _restore(norm, statistics)
    return repaired


def _statistics(norm: _BatchNorm) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}


def _restore(norm: _BatchNorm, statistics: dict[str, Tensor]) -> None:
    for name, value in statistics.items():
        norm.get_buffer(name).copy_(value)
