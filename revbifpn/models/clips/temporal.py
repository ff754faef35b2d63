"""Temporal heads: from the features of a clip's frames to features of the clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MeanPooling(nn.Module):
    """The mean over time, blind to the order of frames: (N, T, F) -> (N, F)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_features = features

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(1)


class TemporalTransformer(nn.Module):
    """A small transformer over the frames with a learned class token: (N, T, F) -> (N, width).

    Pre-norm encoder layers with GELU and learned positions, as in ViT (Dosovitskiy et al., section 3.1). Before them each
    token takes in its neighbours by a convolution over three frames: without it a transformer of this size learned moving
    digits by heart from some hundred clips, and nothing of the order of frames.

    Args:
        features: of a frame, F.
        frames: T, for which positions are learned.
        width: of the tokens.
        depth: encoder layers.
        heads: attention heads, which divide ``width``.
        dropout: inside the layers.

    Raises:
        ValueError: if ``width`` is no multiple of ``heads``.
    """

    def __init__(
        self, features: int, frames: int, width: int = 192, depth: int = 2, heads: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"TemporalTransformer: width {width} is no multiple of {heads} heads")
        self.out_features = width
        self.norm = nn.LayerNorm(features)
        self.project = nn.Linear(features, width)
        self.neighbours = nn.Conv1d(width, width, 3, padding=1)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, frames + 1, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        for parameter in (self.token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.project(self.norm(features))
        tokens = tokens + F.gelu(self.neighbours(tokens.transpose(1, 2)).transpose(1, 2))
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.positions
        encoded: Tensor = self.encoder(tokens)
        return encoded[:, 0]
