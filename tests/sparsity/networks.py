"""Small networks that are pruned here."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from revbifpn.models import RevBiFPN, Variant

TINY = Variant("tiny", Fraction(1, 3), 0, 32, 0.0, 0.0)


class SmallNet(nn.Module):
    """Every kind of layer: first convolution, grouped, depthwise, 1x1, linear, classifier; dropout before a norm."""

    feature_info = [{"module": "grouped_act"}, {"module": "point_act"}]

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(dropout)
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2)
        self.grouped_norm = nn.BatchNorm2d(16)
        self.grouped_act = nn.ReLU()
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 24, 1, bias=False)
        self.point_norm = nn.BatchNorm2d(24)
        self.point_act = nn.ReLU()
        self.hidden = nn.Linear(24, 20)
        self.fc = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.stem_norm(self.stem(x)).relu())
        x = self.grouped_act(self.grouped_norm(self.grouped(x)))
        x = self.point_act(self.point_norm(self.point(self.depthwise(x))))
        logits: Tensor = self.fc(self.hidden(x.mean((2, 3))).relu())
        return logits


PRUNED = ["grouped.weight", "point.weight", "hidden.weight"]


def small_net(dropout: float = 0.0) -> SmallNet:
    """With running statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    model = SmallNet(dropout)
    model(correlated(32))
    return model.eval()


def tiny_revbifpn(reversible: bool = True) -> RevBiFPN:
    torch.manual_seed(0)
    model = RevBiFPN(TINY, num_classes=5, reversible=reversible)
    with torch.no_grad():
        model(correlated(8, 64))
    return model.eval()


def make_small_net() -> SmallNet:
    """For ``module:callable``."""
    return small_net()


def correlated(count: int, side: int = 12, seed: int = 1) -> Tensor:
    """Images whose pixels and channels depend on each other, as those of photographs do."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, side, side, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1) * 3
    return smooth + 0.8 * smooth.mean(1, keepdim=True)
