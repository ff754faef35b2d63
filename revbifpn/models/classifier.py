"""RevBiFPN for image classification, with the methods that every timm model answers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from revbifpn.models.blocks import ConvNormAct, MBConv, init_weights
from revbifpn.models.pyramid import RevBiFPNPyramid
from revbifpn.models.variants import STREAMS, STRIDES, Variant
from revbifpn.reversible import set_reversible
from revbifpn.reversible.exact import DEFAULT_BITS


class ClassificationHead(nn.Module):
    """Folds the pyramid from its finest level into its coarsest, then classifies (RevBiFPN, section 4).

    Each step is a stride-2 MBConv whose output is added to the next level; then a 1x1 convolution to ``fc_features``,
    global average pooling, dropout and a linear layer.
    """

    def __init__(self, variant: Variant, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        channels = variant.neck_channels
        self.steps = nn.ModuleList(
            MBConv(fine, coarse, kernel=5, stride=2, expand=spec.neck_expand, se_ratio=spec.neck_se_ratio)
            for fine, coarse, spec in zip(channels, channels[1:], STREAMS, strict=False)
        )
        self.final = ConvNormAct(channels[-1], variant.fc_features)
        self.drop_rate = drop_rate
        self.apply(init_weights)
        self.fc = _classifier(variant.fc_features, num_classes)


def _classifier(features: int, num_classes: int) -> nn.Module:
    return nn.Linear(features, num_classes) if num_classes > 0 else nn.Identity()


class RevBiFPN(RevBiFPNPyramid):
    """RevBiFPN classifier.

    Args:
        variant: ``"s0"`` to ``"s6"``, or a :class:`.Variant`.
        num_classes: 0 leaves the linear layer out: the model returns pooled features.
        in_chans: image channels.
        drop_rate: dropout before the linear layer; None for the variant's.
        drop_path_rate: stochastic depth rate of the last stage; None for the variant's.
        global_pool: ``"avg"``, or ``""`` for unpooled features.
        reversible, exact, exact_bits: see :class:`.RevBiFPNPyramid`.
    """

    def __init__(
        self,
        variant: str | Variant,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        global_pool: str = "avg",
        reversible: bool = True,
        exact: bool = False,
        exact_bits: int = DEFAULT_BITS,
    ) -> None:
        super().__init__(variant, in_chans, drop_path_rate, reversible, exact, exact_bits)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.variant.fc_features
        self.global_pool = _check_pool(global_pool)
        drop_rate = self.variant.drop_rate if drop_rate is None else drop_rate
        self.head = ClassificationHead(self.variant, num_classes, drop_rate)
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"neck.{level}"}
            for level, (channels, stride) in enumerate(zip(self.variant.neck_channels, STRIDES, strict=True))
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, fc_features, H / 32, W / 32)."""
        return self._fold(self.forward_pyramid(image))

    def forward_pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the four levels, finest first (what :class:`.RevBiFPNPyramid` returns)."""
        return super().forward(image)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, fc_features, h, w) -> (N, num_classes); pooled features if ``pre_logits``."""
        if self.global_pool == "avg":
            features = features.mean(dim=(2, 3))
            features = F.dropout(features, self.head.drop_rate, self.training)
        if pre_logits:
            return features
        logits: Tensor = self.head.fc(features)
        return logits

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """(N, in_chans, H, W) -> logits, (N, num_classes)."""
        return self.forward_head(self.forward_features(image))

    def _fold(self, levels: tuple[Tensor, ...]) -> Tensor:
        x = levels[0]
        for step, level in zip(self.head.steps, levels[1:], strict=True):
            x = level + self.run(step, x)
        return self.run(self.head.final, x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Pyramid levels by index (0 is stride 4, 3 is stride 32), as timm's models give their intermediates.

        Args:
            indices: levels to return; an int for the last n; None for all. Negative ones count from the coarsest.
            intermediates_only: leave out the final features, and the head's compute.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, _ = feature_take_indices(len(STRIDES), indices)
        levels = self.forward_pyramid(x)
        intermediates = [levels[i] for i in take]
        return intermediates if intermediates_only else (self._fold(levels), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what ``forward_intermediates(..., intermediates_only=True)`` at ``indices`` does not need."""
        take, _ = feature_take_indices(len(STRIDES), indices)
        if prune_head:
            self.reset_classifier(0)
            self.head.steps = nn.ModuleList()
            self.head.final = nn.Identity()  # type: ignore[assignment]
        return take

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer by a fresh one for ``num_classes`` (0: none)."""
        if global_pool is not None:
            self.global_pool = _check_pool(global_pool)
        self.num_classes = num_classes
        device = next(self.parameters()).device
        self.head.fc = _classifier(self.num_features, num_classes).to(device)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning rates: body layers, then neck, then head."""
        blocks = r"^body\.(\d+)" if not coarse else r"^body\.(?:(\d+))"
        return {"stem": r"^body\.0", "blocks": [(blocks, None), (r"^neck", (10_000,)), (r"^head\.(?:steps|final)", (20_000,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's name for the memory switch: reversible mode here, which costs less than checkpointing."""
        set_reversible(self, enable)

    def no_weight_decay(self) -> set[str]:
        return set()


def _check_pool(global_pool: str) -> str:
    if global_pool not in ("avg", ""):
        raise ValueError(f"global_pool must be 'avg' or '' (none), got {global_pool!r}")
    return global_pool
