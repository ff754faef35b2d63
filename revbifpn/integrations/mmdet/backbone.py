"""The backbone of a detector: RevBiFPN's body and neck, with what MMDetection asks of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from revbifpn.models.checkpoints import load_weights
from revbifpn.models.pyramid import RevBiFPNPyramid
from revbifpn.models.variants import STRIDES, Variant
from revbifpn.reversible.exact import DEFAULT_BITS
from revbifpn.reversible.memory_format import MemoryFormat, in_format
from revbifpn.reversible.sequential import Exact

try:
    from mmengine.logging import print_log
    from mmengine.model import BaseModule
    from mmengine.registry import MODELS
except ImportError as error:
    raise ImportError(
        "revbifpn.integrations.mmdet needs MMEngine and MMDetection: pip install 'revbifpn[mmdet]' "
        "(mmcv's compiled operators need the steps of tools/setup.sh)"
    ) from error


@MODELS.register_module("RevBiFPN")
class RevBiFPNBackbone(RevBiFPNPyramid, BaseModule):
    """RevBiFPN's body and neck as a detector's backbone.

    Image sides must be multiples of 32: set ``pad_size_divisor=32`` in the detector's data preprocessor. The levels are
    handed over contiguous, whatever the images are and whatever is computed in: mmcv's RoIAlign on CPU silently returns wrong
    values for channels_last features.

    Args:
        variant: ``"s0"`` to ``"s6"``.
        in_chans: image channels.
        out_indices: levels to return, each once; 0 has stride 4, 3 has stride 32. What only serves other levels is left out:
            their neck, and the last silo's edges that lead to nothing else. So no parameter stays without a gradient, and
            DistributedDataParallel needs no ``find_unused_parameters``.
        frozen_stages: freeze the first so many stages (RevBlocks and silo; no gradients, their norms in eval mode);
            -1 or 0 freeze nothing. With the first stage goes the stem, where ``in_chans`` gives it weights.
        norm_eval: keep all norms in eval mode while training.
        with_cp: taken for configs that have it. MMDetection's backbones run their blocks again in backward where it is set;
            this one does so anyway, so it changes nothing.
        reversible: False keeps all activations.
        exact, exact_bits: see :class:`.RevBiFPNPyramid`.
        activation_budget: see :meth:`.RevBiFPNPyramid.set_activation_budget`: of the backbone's activations, planned for the
            first images, since their sizes differ.
        memory_format: what it computes in, see :class:`.RevBiFPNPyramid`.
        drop_path_rate: stochastic depth rate of the last stage; None for the variant's.
        init_cfg: MMEngine's; ``dict(type="Pretrained", checkpoint=FILE_OR_ADDRESS)`` takes the published and this project's
            layout, and classifiers', detectors' and backbones' checkpoints (see :mod:`revbifpn.models.checkpoints`). It may
            have ``prefix``, ``ema=False`` and ``allow_non_finite=True``. What was taken and what was left out is logged.

    Raises:
        ValueError: for an unknown variant or memory format, a number, rate or index out of its range, or ``with_cp`` without
            ``reversible``.
    """

    def __init__(
        self,
        variant: str | Variant = "s0",
        in_chans: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        reversible: bool = True,
        exact: Exact = "auto",
        exact_bits: int = DEFAULT_BITS,
        activation_budget: float | str = 0,
        memory_format: MemoryFormat = "auto",
        drop_path_rate: float | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(variant, in_chans, drop_path_rate, reversible, exact, exact_bits, activation_budget, memory_format)
        self.init_cfg = init_cfg
        if with_cp and not reversible:
            raise ValueError(
                "with_cp=True asks to compute activations again in backward, reversible=False to keep them: leave one out"
            )
        self.with_cp = with_cp
        self.out_indices = _check_levels(out_indices)
        if frozen_stages not in range(-1, self.variant.num_stages + 1):
            raise ValueError(
                f"frozen_stages must be in -1..{self.variant.num_stages} (RevBiFPN-{self.variant.name} has "
                f"{self.variant.num_stages} stages), got {frozen_stages!r}"
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        whole = self.state_dict().keys()
        self.keep_levels(self.out_indices)  # no weights that would never get a gradient
        self._pruned = tuple(whole - self.state_dict().keys())
        self._freeze()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the levels of ``out_indices``, contiguous, level i of stride 4 * 2 ** i."""
        levels = self._levels(image, self.out_indices)
        return tuple(in_format(level, torch.contiguous_format) for level in levels)

    def train(self, mode: bool = True) -> RevBiFPNBackbone:
        """Switch to training mode, except norms that ``frozen_stages`` and ``norm_eval`` hold in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages > 0:
            self.stem.requires_grad_(False)
        for stage in range(self.frozen_stages):
            for layer in self.stage_layers(stage):
                layer.eval()
                layer.requires_grad_(False)

    def init_weights(self) -> None:
        """Load the ``Pretrained`` checkpoint of ``init_cfg``, where there is one; construction did the rest.

        Raises:
            FileNotFoundError, CheckpointError: if the checkpoint cannot be read or does not fit; nothing is changed then.
            ValueError: if the ``Pretrained`` config has an option that there is not.
        """
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg] if self.init_cfg else []
        pretrained = [config for config in configs if config["type"] == "Pretrained"]
        self.init_cfg = [config for config in configs if config["type"] != "Pretrained"]
        try:
            super().init_weights()
        finally:
            self.init_cfg = configs
        for config in pretrained:
            self._load_pretrained(**{key: value for key, value in config.items() if key != "type"})

    def _load_pretrained(self, checkpoint: str, **options: Any) -> None:
        known = {"prefix", "ema", "allow_non_finite", "map_location"}  # the last is MMEngine's; weights are read to the CPU
        if unknown := sorted(options.keys() - known):
            raise ValueError(f"init_cfg of type 'Pretrained' has no {', '.join(unknown)}, but {', '.join(sorted(known))}")
        loaded = load_weights(
            self,
            checkpoint,
            prefix=options.get("prefix") or "",
            ema=options.get("ema", True),
            allow_non_finite=options.get("allow_non_finite", False),
            ignore=("head.", *self._pruned),
        )
        print_log(f"RevBiFPN-{self.variant.name}: {loaded}", logger="current")


def _check_levels(out_indices: Sequence[int]) -> tuple[int, ...]:
    levels = tuple(out_indices) if isinstance(out_indices, Sequence) else ()
    if not levels or len(set(levels)) < len(levels) or any(type(i) is not int or i not in range(len(STRIDES)) for i in levels):
        raise ValueError(
            f"out_indices must be some of 0..{len(STRIDES) - 1} (strides {STRIDES}), each once, got {out_indices!r}"
        )
    return levels
