"""The convolutional blocks that RevBiFPN's edges, neck and head are made of."""

from __future__ import annotations

from collections import OrderedDict

from timm.layers import DropPath, SqueezeExcite
from torch import Tensor, nn

from revbifpn.reversible.layers import memory_format_of

BN_EPS = 1e-3
BN_MOMENTUM = 0.1


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


def init_weights(module: nn.Module) -> None:
    """Initialise one module as RevBiFPN is trained from; for ``nn.Module.apply``.

    Convolutions: Kaiming normal, fan-out, gain of ReLU; their biases (squeeze-excite's) zero. Norms: weight 1, bias 0.
    Linear layers keep torch's default.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def repeat_channels(image: Tensor, channels: int) -> Tensor:
    """Repeat the channels of ``image`` (R, G, B, R, ...) up to ``channels``; (N, C, H, W) -> (N, channels, H, W)."""
    if image.shape[1] == channels:
        return image
    repeated = image.repeat(1, -(-channels // image.shape[1]), 1, 1)[:, :channels]
    return repeated.contiguous(memory_format=memory_format_of(image))
