"""A reversible neck for any backbone: bidirectional fusion as often as wanted, in the memory of one time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from revbifpn.integrations.mmdet.levels import check_levels, extra_conv_levels, extra_levels
from revbifpn.reversible import ReversibleSequential, RevSilo, recompute
from revbifpn.reversible.exact import DEFAULT_BITS

_SOURCES = ("on_input", "on_lateral", "on_output")


@MODELS.register_module()
class RevSiloNeck(BaseModule):
    """Fuse the levels of any backbone by reversible silos (RevBiFPN, section 3: BiFPN's fusion in both directions, made
    reversible).

    Each level is brought to one width by a 1x1 convolution and a norm. Then come ``num_repeats`` silos: every level adds to
    itself what all finer levels have for it (a strided edge), and then what all coarser ones have (an edge and bilinear
    upsampling). Edges are depthwise-separable convolutions. Backward rebuilds the levels before each silo from those after it,
    so training memory does not grow with ``num_repeats``. It takes FPN's arguments: a config that names FPN changes its type.

    Args:
        in_channels: of the backbone's levels, finest first, each with half the resolution of the one before.
        out_channels: of all outputs.
        num_outs: number of outputs; those beyond the fused levels are made as FPN makes them.
        num_repeats: number of silos.
        start_level, end_level: the first level to use, and the last one (-1 for all).
        add_extra_convs: how to make outputs beyond the fused levels: False by taking every second pixel of the last one;
            ``"on_input"`` (or True), ``"on_lateral"`` or ``"on_output"`` by strided convolutions, the first of which reads the
            backbone's last level, its 1x1 convolution's output, or the last fused level.
        relu_before_extra_convs: put a ReLU between these convolutions.
        norm_cfg, act_cfg: MMCV's, for the norms everywhere and for the activation inside the edges.
        reversible: False keeps all activations, as an ordinary neck.
        exact, exact_bits: rebuild activations bit for bit (see :mod:`revbifpn.reversible.exact`).
        init_cfg: MMEngine's.

    Raises:
        ValueError: for fewer than two levels to fuse, no silo, or ``num_outs`` and extra levels that do not go together.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        num_repeats: int = 3,
        start_level: int = 0,
        end_level: int = -1,
        add_extra_convs: bool | str = False,
        relu_before_extra_convs: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
        reversible: bool = True,
        exact: bool = False,
        exact_bits: int = DEFAULT_BITS,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = list(in_channels)
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.num_repeats = num_repeats
        self.start_level = start_level
        self.end_level = len(self.in_channels) if end_level == -1 else end_level + 1
        self.extra_source = "on_input" if add_extra_convs is True else add_extra_convs
        self.relu_before_extra_convs = relu_before_extra_convs
        self.reversible = reversible
        used = self.in_channels[start_level : self.end_level]
        self._check(used)
        norm_cfg = norm_cfg or dict(type="BN", requires_grad=True)
        act_cfg = act_cfg or dict(type="ReLU")
        self.laterals = nn.ModuleList(
            ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None) for channels in used
        )
        silos = [_silo(len(used), out_channels, norm_cfg, act_cfg) for _ in range(num_repeats)]
        self.silos = ReversibleSequential(*silos, reversible=reversible, exact=exact, exact_bits=exact_bits)
        self.extra_convs = nn.ModuleList()
        if self.extra_source:
            first = used[-1] if self.extra_source == "on_input" else out_channels
            for i in range(num_outs - len(used)):
                source = out_channels if i else first
                self.extra_convs.append(ConvModule(source, out_channels, 3, stride=2, padding=1, act_cfg=None))
        self._scale_edges()

    def _check(self, used: Sequence[int]) -> None:
        if len(used) < 2:
            raise ValueError(
                f"RevSiloNeck fuses two levels at least, got {len(used)}: in_channels={self.in_channels}, "
                f"start_level={self.start_level}, end_level={self.end_level - 1}"
            )
        if self.num_repeats < 1:
            raise ValueError(f"RevSiloNeck: num_repeats must be 1 at least, got {self.num_repeats}")
        if self.num_outs < len(used):
            raise ValueError(f"RevSiloNeck: num_outs={self.num_outs} is less than the {len(used)} levels that it fuses")
        if self.extra_source and self.extra_source not in _SOURCES:
            raise ValueError(f"RevSiloNeck: add_extra_convs must be a bool or one of {_SOURCES}, got {self.extra_source!r}")

    def init_weights(self) -> None:
        """Initialise as MMEngine does, then scale the edges."""
        super().init_weights()
        self._scale_edges()

    def _scale_edges(self) -> None:
        """Let each stream begin with an edges' sum of variance 1, however many silos there are."""
        num_edges = len(self.silos) * (len(self.laterals) - 1)  # that end in a stream
        for module in self.silos.modules():
            if isinstance(module, DepthwiseSeparableConvModule) and module.pointwise_conv.norm is not None:
                nn.init.constant_(module.pointwise_conv.norm.weight, num_edges**-0.5)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map the backbone's levels to ``num_outs`` levels of ``out_channels``, contiguous, finest first.

        Raises:
            ValueError: for another number of levels, or levels that are not half as large as the one before.
        """
        if len(inputs) != len(self.in_channels):
            raise ValueError(f"RevSiloNeck: in_channels has {len(self.in_channels)} levels, the backbone gave {len(inputs)}")
        used = inputs[self.start_level : self.end_level]
        check_levels(used, len(self.laterals), "RevSiloNeck")
        laterals = [self._lateral(conv, level) for conv, level in zip(self.laterals, used, strict=True)]
        # mmcv's RoIAlign on CPU silently returns wrong values for channels_last features.
        levels = [level.contiguous() for level in self.silos(*laterals)]
        if not self.extra_source:
            return tuple(extra_levels(levels, self.num_outs))
        source = {"on_input": used[-1], "on_lateral": laterals[-1], "on_output": levels[-1]}[str(self.extra_source)]
        return tuple(extra_conv_levels(levels, self.extra_convs, source, self.relu_before_extra_convs))

    def _lateral(self, conv: nn.Module, level: Tensor) -> Tensor:
        lateral: Tensor = recompute(conv, level) if self.reversible else conv(level)
        # Under autocast this is half precision; streams kept in it would be rebuilt with errors of 1e-2.
        return lateral.to(torch.promote_types(lateral.dtype, torch.float32))


def _silo(num_streams: int, channels: int, norm_cfg: dict[str, Any], act_cfg: dict[str, Any]) -> RevSilo:
    def edge(kernel: int, stride: int = 1) -> nn.Module:
        return DepthwiseSeparableConvModule(
            channels,
            channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            pw_act_cfg=None,
        )

    pairs = [(fine, coarse) for coarse in range(num_streams) for fine in range(coarse)]
    down = {(i, j): edge(2 * 2 ** (j - i) - 1, 2 ** (j - i)) for i, j in pairs}  # every pixel is in a window
    up = {(j, i): nn.Sequential(edge(3), nn.Upsample(scale_factor=2 ** (j - i), mode="bilinear")) for i, j in pairs}
    return RevSilo(down, up)
