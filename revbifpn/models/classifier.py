"""RevBiFPN for image classification, with the methods that every timm model answers."""

# No postponed annotations here: torch.fx copies those of forward into its graphs, where TorchScript reads them as types.
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from revbifpn.models.arguments import check_count, check_rate
from revbifpn.models.blocks import ConvNormAct, MBConv, init_weights
from revbifpn.models.body import trace_for_script
from revbifpn.models.pyramid import RevBiFPNPyramid
from revbifpn.models.variants import STREAMS, STRIDES, Variant
from revbifpn.reversible import set_reversible
from revbifpn.reversible.exact import DEFAULT_BITS
from revbifpn.reversible.memory_format import MemoryFormat
from revbifpn.reversible.sequential import Exact

#: Kinds of global pooling: timm's, and "" for none.
POOLS = ("avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax", "")


class ClassificationHead(nn.Module):
    """Folds the pyramid from its finest level into its coarsest, then classifies (RevBiFPN, section 4).

    Each step is a stride-2 MBConv whose output is added to the next level; then a 1x1 convolution to ``fc_features``,
    global pooling, dropout and a linear layer.
    """

    def __init__(self, variant: Variant, num_classes: int, drop_rate: float, global_pool: str = "avg") -> None:
        super().__init__()
        channels = variant.neck_channels
        self.steps = nn.ModuleList(
            MBConv(fine, coarse, kernel=5, stride=2, expand=spec.neck_expand, se_ratio=spec.neck_se_ratio)
            for fine, coarse, spec in zip(channels, channels[1:], STREAMS, strict=False)
        )
        self.final: nn.Module = ConvNormAct(channels[-1], variant.fc_features)
        self.drop_rate = check_rate("drop_rate", drop_rate)
        self.apply(init_weights)
        self.reset(variant.fc_features, num_classes, global_pool)

    def reset(
        self,
        features: int,
        num_classes: int,
        global_pool: str,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Replace pooling and linear layer by fresh ones for ``features`` channels.

        Raises:
            ValueError: for an unknown kind of pooling, or a negative number of classes.
        """
        check_count("num_classes", num_classes, 0)
        if global_pool not in POOLS:
            known = ", ".join(map(repr, POOLS))
            raise ValueError(f"global_pool must be one of {known} ('' for none), got {global_pool!r}")
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool)).train(self.training)
        self.num_features = features * self.global_pool.feat_mult()
        self.fc: nn.Module = nn.Identity()
        if num_classes > 0:
            self.fc = nn.Linear(self.num_features, num_classes, device=device, dtype=dtype)
        self.fc.train(self.training)

    def fold(self, levels: tuple[Tensor, ...], run: Any) -> Tensor:
        """The four levels -> (N, fc_features, H / 32, W / 32); ``run(module, input)`` runs one module."""
        x = levels[0]
        for step, level in zip(self.steps, levels[1:], strict=True):
            x = level + run(step, x)
        folded: Tensor = run(self.final, x)
        return folded

    def forward(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, features, h, w) -> (N, num_classes); pooled features if ``pre_logits``."""
        if not self.global_pool.pool_type and isinstance(self.fc, nn.Linear) and not pre_logits:
            raise ValueError(
                "global_pool='' leaves features that the linear layer cannot take: choose a pooling "
                "(reset_classifier(num_classes, 'avg')), leave the classifier out (num_classes=0), or call forward_features"
            )
        pooled: Tensor = self.global_pool(features)
        pooled = F.dropout(pooled, self.drop_rate, self.training)
        return pooled if pre_logits else self.fc(pooled)


class RevBiFPN(RevBiFPNPyramid):
    """RevBiFPN classifier.

    Args:
        variant: ``"s0"`` to ``"s6"``, or a :class:`.Variant`.
        num_classes: 0 leaves the linear layer out: the model returns pooled features.
        in_chans: image channels.
        drop_rate: dropout before the linear layer; None for the variant's.
        drop_path_rate: stochastic depth rate of the last stage; None for the variant's.
        global_pool: one of :data:`POOLS`; ``""`` for unpooled features.
        reversible, exact, exact_bits, activation_budget, memory_format: see :class:`.RevBiFPNPyramid`.
        device, dtype: where and as what parameters and buffers are made; None for torch's defaults.

    Raises:
        ValueError: for a number or rate out of its range, or an unknown kind of pooling or memory format.

    Attributes:
        num_features: channels of :meth:`forward_features`.
        head_hidden_size: channels that the linear layer sees; twice ``num_features`` with "catavgmax".
        feature_info: the levels, as timm describes features. ``module`` names a place without weights where each passes by,
            for hooks, in the memory format that is computed in: the output of ``neck.<level>`` itself has no graph in
            reversible mode.
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
        exact: Exact = "auto",
        exact_bits: int = DEFAULT_BITS,
        activation_budget: float | str = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        with nullcontext() if device is None else torch.device(device):
            super().__init__(
                variant, in_chans, drop_path_rate, reversible, exact, exact_bits, activation_budget, memory_format
            )
            self.levels = nn.ModuleList(nn.Identity() for _ in STRIDES)
            drop_rate = self.variant.drop_rate if drop_rate is None else drop_rate
            self.head = ClassificationHead(self.variant, num_classes, drop_rate, global_pool)
        if dtype is not None:
            self.to(dtype)
        self.num_classes = num_classes
        self.num_features = self.variant.fc_features
        self.head_hidden_size = self.head.num_features
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"levels.{level}"}
            for level, (channels, stride) in enumerate(zip(self.variant.neck_channels, STRIDES, strict=True))
        ]

    @property
    def global_pool(self) -> str:
        """The kind of pooling."""
        pool_type: str = self.head.global_pool.pool_type
        return pool_type

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise everything anew, as after ``create_model(..., device="meta").to_empty(device=...)``."""
        self.apply(init_weights)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
            elif isinstance(module, nn.Linear):
                module.reset_parameters()

    def forward_features(self, image: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / 32, W / 32); after pruning, the coarsest kept level."""
        return self._handed_back(image, [self._features(image)])[0]

    def _features(self, image: Tensor) -> Tensor:
        return self._fold(self._levels(image, self.kept_levels))

    def forward_pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the kept levels, finest first (what :class:`.RevBiFPNPyramid` returns)."""
        return super().forward(image)

    def _levels(self, image: Tensor, levels: Sequence[int]) -> tuple[Tensor, ...]:
        outputs = super()._levels(image, levels)
        return tuple(self.levels[level](output) for level, output in zip(levels, outputs, strict=True))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, h, w) -> (N, num_classes); pooled features, (N, head_hidden_size), if ``pre_logits``.

        Raises:
            ValueError: with a linear layer but without pooling.
        """
        return self.head(features, pre_logits)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """(N, in_chans, H, W) -> logits, (N, num_classes)."""
        return self.forward_head(self._features(image))

    def _fold(self, levels: tuple[Tensor, ...]) -> Tensor:
        return self.head.fold(levels, self.run) if len(self.head.steps) else levels[-1]

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
            x: (N, in_chans, H, W).
            indices: levels to return, finest first whatever their order here; negative ones count from the coarsest. An int
                for the last n, None for all, of those that are kept.
            norm: no effect, there is no norm after the levels.
            stop_early: no effect, all levels leave the last silo together; ``intermediates_only`` and pruning save work.
            output_fmt: "NCHW".
            intermediates_only: leave out the final features, and with them the head and the neck of other levels.

        Returns:
            Levels of (N, neck_channels[i], H / stride, W / stride); before them what ``forward_features`` returns.

        Raises:
            ValueError: for another format, or levels that were pruned.
            AssertionError: timm's, for indices out of range.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take = self._take(indices)
        if intermediates_only:
            return list(self.forward_levels(x, take))
        levels = self._levels(x, self.kept_levels)
        taken = [levels[self.kept_levels.index(level)] for level in take]
        features, *intermediates = self._handed_back(x, [self._fold(levels), *taken])
        return features, intermediates

    def _take(self, indices: int | list[int] | tuple[int, ...] | None) -> list[int]:
        if indices is None or isinstance(indices, int):
            positions, _ = feature_take_indices(len(self.kept_levels), indices)
            return [self.kept_levels[position] for position in positions]
        take = sorted(set(feature_take_indices(len(STRIDES), indices)[0]))
        if not set(take) <= set(self.kept_levels):
            raise ValueError(f"levels {take} were asked for, but pruning kept only {list(self.kept_levels)}")
        return take

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what ``forward_intermediates(..., intermediates_only=True)`` at ``indices`` does not need.

        That is the head, the neck of other levels, and the last silo's edges that lead to them; the rest of the body serves
        every level. The coarsest kept level is then what ``forward_features`` returns, and ``reset_classifier`` puts a linear
        layer on.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: no effect, there is no norm after the levels.
            prune_head: False keeps everything: the head reads all levels.

        Returns:
            The levels that are taken, finest first.
        """
        take = self._take(indices)
        if prune_head:
            self.keep_levels(take)
            self.head.steps = nn.ModuleList()
            self.head.final = nn.Identity()
            self.num_features = self.variant.neck_channels[take[-1]]
            self.reset_classifier(0, "")
        return take

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The linear layer, or its name."""
        return "head.fc" if name_only else self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer by a fresh one for ``num_classes`` (0: none), and the pooling if one is named.

        Raises:
            ValueError: for an unknown kind of pooling, or a negative number of classes.
        """
        like = next(self.parameters())
        pool = self.global_pool if global_pool is None else global_pool
        self.head.reset(self.num_features, num_classes, pool, device=like.device, dtype=like.dtype)
        self.num_classes = num_classes
        self.head_hidden_size = self.head.num_features

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning rates: stem, body layers (or stages, if ``coarse``), neck, head."""
        stages = [(rf"^body\.(?:{1 + 2 * stage}|{2 + 2 * stage})\.", (stage,)) for stage in range(self.variant.num_stages)]
        body = stages if coarse else [(r"^body\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": [*body, (r"^neck", (10_000,)), (r"^head\.(?:steps|final)", (20_000,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's name for the memory switch: reversible mode here, which costs less than checkpointing; False stores."""
        set_reversible(self, enable)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare; timm spares norms and biases by their shape already."""
        return set()

    def __prepare_scriptable__(self) -> nn.Module:
        return trace_for_script(self, self.in_chans)
