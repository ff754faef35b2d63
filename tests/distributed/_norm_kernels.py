"""SyncBatchNorm on a CPU.

``torch.nn.SyncBatchNorm`` computes with five kernels, which torch has for GPUs only; here they are, by their definitions. What
is made of them (counting, gathering, reducing, the order of the backward pass) is torch's own.
"""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor, nn


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, torch.rsqrt(var + eps)


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """(processes, channels) each, and the number of values of each process."""
    count, weights = counts.sum(), counts.view(-1, 1) / counts.sum()
    mean = (weights * means).sum(0)
    var = (weights * (invstds.pow(-2) - eps + (means - mean).square())).sum(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * count / (count - 1), momentum)
    return mean, torch.rsqrt(var + eps)


def batch_norm_elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    return (x - _channels(mean)) * _channels(invstd * weight) + _channels(bias)


def batch_norm_backward_reduce(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *needs: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sum_grad, sum_grad_centred = grad.sum((0, 2, 3)), (grad * (x - _channels(mean))).sum((0, 2, 3))
    return sum_grad, sum_grad_centred, sum_grad_centred * invstd, sum_grad.clone()


def batch_norm_backward_elemt(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    sum_grad: Tensor,
    sum_grad_centred: Tensor,
    counts: Tensor,
) -> Tensor:
    count = counts.sum()
    through_var = (x - _channels(mean)) * _channels(invstd.square() * sum_grad_centred / count)
    return (grad - _channels(sum_grad / count) - through_var) * _channels(invstd * weight)


def _channels(value: Tensor) -> Tensor:
    return value.view(1, -1, 1, 1)


def register_on_cpu() -> torch.library.Library:
    """Give torch the kernels for CPU, as long as what is returned lives."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    for kernel in (
        batch_norm_stats,
        batch_norm_gather_stats_with_counts,
        batch_norm_elemt,
        batch_norm_backward_reduce,
        batch_norm_backward_elemt,
    ):
        library.impl(kernel.__name__, kernel)
    return library


_forward_on_gpu = nn.SyncBatchNorm.forward


def forward_on_cpu(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """SyncBatchNorm takes tensors on GPUs and on the device that a plug-in has registered: let that be the CPU."""
    with mock.patch("torch._C._get_privateuse1_backend_name", return_value="cpu"):
        return _forward_on_gpu(norm, x)
