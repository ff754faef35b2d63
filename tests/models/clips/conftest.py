"""A RevBiFPN of three stages, its streams of 16 to 48 channels, whose norms do something."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from revbifpn import RevBiFPN
from revbifpn.models.variants import Variant

TINY = Variant("tiny", Fraction(1, 3), 0, 32, 0.0, 0.0)
FRAMES = 4


def tiny(**options: Any) -> RevBiFPN:
    """The same weights each time."""
    torch.manual_seed(0)
    model = RevBiFPN(TINY, num_classes=0, **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
    return model


def clips(count: int = 2, frames: int = FRAMES, size: int = 32) -> Tensor:
    return torch.randn(count, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Equal by ``tolerance`` of the largest value of all: single gradients of what feeds a norm are rounding noise."""
    assert ours.keys() == theirs.keys()
    largest = max(float(value.abs().max()) for value in theirs.values())
    assert largest > 1e-3
    for name, value in theirs.items():
        assert float((ours[name] - value).abs().max()) <= tolerance * largest, name
