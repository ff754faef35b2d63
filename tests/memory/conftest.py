"""Profiling tests share a small reversible model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from revbifpn import RevBlock, ReversibleSequential


class TinyModel(nn.Module):
    """A convolution, a reversible stack, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.body = ReversibleSequential(*(RevBlock(half(), half()) for _ in range(4)))
        self.fc = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        (x,) = self.body(self.stem(image))
        logits: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def half() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())


def make_tiny() -> TinyModel:
    """For ``module:callable``."""
    return TinyModel()


@pytest.fixture
def tiny() -> TinyModel:
    torch.manual_seed(0)
    return TinyModel().train()
