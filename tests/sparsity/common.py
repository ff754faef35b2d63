"""A small network, batches of noise, and a training loop for the tests here."""

from __future__ import annotations

from collections import OrderedDict
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn.models import RevBiFPN, Variant
from revbifpn.sparsity import SparseTraining

TINY = Variant("tiny", Fraction(1, 3), 0, 32, 0.0, 0.0)


def small_network(seed: int = 0) -> nn.Sequential:
    """Stem, two convolutions that become sparse (1,152 and 2,304 weights), a depthwise one, and a classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 8, 3, padding=1),
            norm=nn.BatchNorm2d(8),
            conv1=nn.Conv2d(8, 16, 3, padding=1),
            act=nn.ReLU(),
            depthwise=nn.Conv2d(16, 16, 3, padding=1, groups=16),
            conv2=nn.Conv2d(16, 16, 3, padding=1),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(16, 10),
        )
    )


def tiny_revbifpn(**options: Any) -> RevBiFPN:
    torch.manual_seed(0)
    return RevBiFPN(TINY, num_classes=5, **options).train()


def batch(seed: int, size: int = 8, side: int = 8, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, side, side, generator=generator)
    return images, torch.randint(classes, (size,), generator=generator)


def train(
    model: nn.Module,
    sparse: SparseTraining,
    steps: range,
    side: int = 8,
    size: int = 8,
    **step_options: Any,
) -> list[float]:
    """Train on a batch of noise for each step; returns the losses."""
    losses = []
    for step in steps:
        images, labels = batch(step, size, side)
        sparse.optimizer.zero_grad()
        loss = F.cross_entropy(model(images.to(next(model.parameters()).dtype)), labels)
        loss.backward()
        sparse.step(**step_options)
        losses.append(float(loss.detach()))
    return losses


def zeros(tensor: Tensor) -> int:
    return int((tensor == 0).sum())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def sparse_sgd(model: nn.Module, method: str = "static", **options: Any) -> SparseTraining:
    options = {"sparsity": 0.9, "total_steps": 20, "update_every": 3} | options
    return SparseTraining(model, sgd(model), method=method, **options)
