"""The convolutional blocks that RevBiFPN's edges, neck and head are made of."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import torch
from timm.layers import DropPath, SqueezeExcite
from torch import Tensor, nn

from revbifpn.reversible import ConvNorm, lean_chain, register_lean_form
from revbifpn.reversible import SqueezeExcite as LeanSqueezeExcite
from revbifpn.reversible.forms import Form
from revbifpn.reversible.streams import memory_format_of

BN_EPS = 1e-3
BN_MOMENTUM = 0.1
COLOURS = 3  # R, G, B: the image channels that the published weights were trained with


class ConvNormAct(nn.Sequential):
    """Convolution without bias ("same" padding for odd kernels), batch norm, and Hardswish unless ``act`` is False.

    (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
            norm=nn.BatchNorm2d(out_channels, eps=BN_EPS, momentum=BN_MOMENTUM),
        )
        if act:
            layers["act"] = nn.Hardswish()
        super().__init__(layers)


class MBConv(nn.Sequential):
    """Inverted bottleneck: expand, depthwise, squeeze-excite, project; no skip, no activation at the end.

    (N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)).

    Args:
        expand: ratio of the hidden width to ``in_channels``; 1 leaves the expanding convolution out.
        se_ratio: squeeze-excite's hidden width as a fraction of ``in_channels``; 0 for none.
        drop_path: rate of stochastic depth, per sample, after the last norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        expand: int = 1,
        se_ratio: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        hidden = in_channels * expand
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expand != 1:
            layers["expand"] = ConvNormAct(in_channels, hidden)
        layers["depthwise"] = ConvNormAct(hidden, hidden, kernel, stride, groups=hidden)
        if se_ratio > 0:
            layers["se"] = SqueezeExcite(
                hidden,
                rd_channels=max(1, int(in_channels * se_ratio)),
                act_layer=nn.Hardswish,
                gate_layer=nn.Hardsigmoid,
            )
        layers["project"] = ConvNormAct(hidden, out_channels, act=False)
        if drop_path > 0:
            layers["drop_path"] = DropPath(drop_path)
        super().__init__(layers)


class UpEdge(nn.Sequential):
    """An MBConv and bilinear upsampling by ``scale``: what leads from a coarser stream to a finer one."""

    def __init__(self, mbconv: MBConv, scale: int) -> None:
        super().__init__(
            OrderedDict(mbconv=mbconv, upsample=nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False))
        )


def lean_units(block: nn.Sequential) -> list[ConvNorm] | None:
    """Return a block with an MBConv's parts, or a ConvNormAct, as what the engine's lean form knows.

    None if it was changed into something else.
    """
    if isinstance(block, ConvNormAct):
        parts = dict(block.named_children())
        if not {"conv", "norm"} <= parts.keys() <= {"conv", "norm", "act"}:
            return None
        return [ConvNorm(parts["conv"], parts["norm"], parts.get("act"))]  # type: ignore[arg-type]
    units: list[ConvNorm] = []
    for name, part in block.named_children():
        if type(part) is ConvNormAct and (found := lean_units(part)):
            units += found
        elif type(part) is SqueezeExcite and units and not part.add_maxpool and type(part.bn) is nn.Identity:
            gate = LeanSqueezeExcite(part.fc1, part.act, part.fc2, part.gate)  # type: ignore[arg-type]
            units[-1] = replace(units[-1], se=gate)
        elif not (name == "drop_path" and type(part) is DropPath):
            return None
    return units


def _lean_mbconv(block: MBConv, upsample: nn.Upsample | None = None) -> Form | None:
    units = lean_units(block)
    return lean_chain(block, units, getattr(block, "drop_path", None), upsample) if units else None


def _lean_up_edge(edge: UpEdge) -> Form | None:
    parts = list(edge.children())
    if len(parts) != 2 or type(parts[0]) is not MBConv or type(parts[1]) is not nn.Upsample:
        return None
    return _lean_mbconv(parts[0], parts[1])


def _lean_conv(block: ConvNormAct) -> Form | None:
    units = lean_units(block)
    return lean_chain(block, units) if units else None


register_lean_form(MBConv, _lean_mbconv)
register_lean_form(UpEdge, _lean_up_edge)
register_lean_form(ConvNormAct, _lean_conv)


def init_weights(module: nn.Module) -> None:
    """Initialise one module as RevBiFPN is trained from; for ``nn.Module.apply``.

    Convolutions get Kaiming normal weights (fan-out, gain of ReLU); their biases, which squeeze-excite alone has, are zero.
    Norms get weight 1 and bias 0. Linear layers keep torch's default, and :class:`MixChannels` keeps its own.
    """
    if isinstance(module, MixChannels):
        module.reset_parameters()
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class MixChannels(nn.Conv2d):
    """The stem of images with more channels than its slots: a 1x1 convolution without bias.

    (N, in_chans, H, W) -> (N, channels, H, W), in the image's dtype also under autocast: the reversible streams begin here.

    It starts as timm adapts a pretrained RGB stem, for any number of slots: slot s takes channel c with weight
    ``3 / in_chans`` where ``c % 3 == s % 3``, else 0. So an image that repeats R, G, B, R, G, B, ... gives the slots what an
    RGB image would (for a multiple of 3 channels exactly that).
    """

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__(in_chans, channels, 1, bias=False)

    def reset_parameters(self) -> None:
        rgb = torch.eye(COLOURS).repeat(-(-self.out_channels // COLOURS), 1)[: self.out_channels]
        with torch.no_grad():
            self.weight.copy_(adapt_stem_weight(rgb[:, :, None, None], self.in_channels))

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image).to(image.dtype)


def adapt_stem_weight(weight: Tensor, in_chans: int) -> Tensor:
    """Fit a 1x1 stem's weight to another number of image channels, by timm's rule.

    (channels, base, 1, 1) -> (channels, in_chans, 1, 1): columns are repeated in turn and scaled by ``base / in_chans``.
    """
    base = weight.shape[1]
    return weight[:, [channel % base for channel in range(in_chans)]] * (base / in_chans)


def repeat_channels(image: Tensor, channels: int) -> Tensor:
    """Repeat the channels of ``image`` (R, G, B, R, ...) up to ``channels``; (N, C, H, W) -> (N, channels, H, W).

    With more than three image channels, slot s takes in turn those c with ``c % 3 == s % 3``: a slot that was trained on red
    sees red or what stands in red's place (R, G, B, X -> R, G, B, X, G, B, R, ...).
    """
    in_chans = image.shape[1]
    if in_chans == channels:
        return image
    sources = [_source_channel(slot, in_chans) for slot in range(channels)]
    repeated = torch.cat([image[:, source : source + 1] for source in sources], dim=1)
    return repeated.contiguous(memory_format=memory_format_of(image))


def _source_channel(slot: int, in_chans: int) -> int:
    if in_chans < COLOURS:
        return slot % in_chans
    same_colour = range(slot % COLOURS, in_chans, COLOURS)
    return same_colour[slot // COLOURS % len(same_colour)]
