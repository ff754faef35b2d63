"""What a layer's weights are multiplied by: the inputs of convolutions and linear layers, and their second moments.

Inputs are taken where ``conv2d`` and ``linear`` are computed, not where a module is called. So they are padded as the layer
pads them, whoever does it: zero padding, ``"same"``, another padding mode, or timm's ``Conv2dSame``, which pads in its own
forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CHUNK = 2**24  # numbers that are unfolded at once


@dataclass(frozen=True)
class LayerCall:
    """One call of ``conv2d`` or ``linear``.

    Attributes:
        input: (N, C, H, W) of a convolution, (..., C) of a linear layer.
        weight: the tensor that the caller named, a parameter.
        stride, padding, dilation: in pixels, vertical and horizontal; ``padding`` may be ``"same"`` or ``"valid"``.
        groups: of a convolution; 1 of a linear layer.
    """

    input: Tensor
    weight: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class LayerCalls(TorchFunctionMode):
    """A context in which ``seen(name, call)`` is called before each convolution and linear layer with one of ``weights``.

    What it changes in the weight is what the layer then computes with.
    """

    def __init__(self, weights: Mapping[str, Tensor], seen: Callable[[str, LayerCall], None]) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in weights.items()}
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.conv2d, F.linear):
            call = (_conv2d if func is F.conv2d else _linear)(*args, **kwargs)
            if (name := self.names.get(id(call.weight))) is not None:
                self.seen(name, call)
        return func(*args, **kwargs)


def _conv2d(
    input: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> LayerCall:
    batched = input if input.ndim == 4 else input[None]
    padding = padding if isinstance(padding, str) else _pair(padding)
    return LayerCall(batched, weight, _pair(stride), padding, _pair(dilation), groups)


def _linear(input: Tensor, weight: Tensor, bias: Any = None) -> LayerCall:
    return LayerCall(input, weight)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def positions_of(call: LayerCall) -> int:
    """How often the layer's weights are used in a call: output pixels of all images, or rows."""
    if call.weight.ndim == 2:
        return call.input.shape[:-1].numel()
    return windows(call).shape[:3].numel()


def windows(call: LayerCall) -> Tensor:
    """A view of a convolution's padded input: (N, out height, out width, groups, kernel height, kernel width, channels)."""
    groups, (height, width) = call.groups, call.weight.shape[2:]
    image = F.pad(call.input, _padding(call)).contiguous()
    batch, channels, rows, columns = image.shape
    out = [
        (side - dilation * (kernel - 1) - 1) // stride + 1
        for side, kernel, stride, dilation in zip((rows, columns), (height, width), call.stride, call.dilation, strict=True)
    ]
    per_image, per_channel, per_row, per_column = image.stride()
    size = (batch, *out, groups, height, width, channels // groups)
    return image.as_strided(
        size,
        (
            per_image,
            per_row * call.stride[0],
            per_column * call.stride[1],
            per_channel * (channels // groups),
            per_row * call.dilation[0],
            per_column * call.dilation[1],
            per_channel,
        ),
    )


def _padding(call: LayerCall) -> list[int]:
    """In the order of ``F.pad``: left, right, top, bottom."""
    if isinstance(call.padding, str):
        if call.padding == "valid":
            return [0, 0, 0, 0]
        # "same": torch puts the odd pixel behind
        whole = [dilation * (kernel - 1) for dilation, kernel in zip(call.dilation, call.weight.shape[2:], strict=True)]
        return [side for total in reversed(whole) for side in (total // 2, total - total // 2)]
    vertical, horizontal = call.padding
    return [horizontal, horizontal, vertical, vertical]


def second_moments(call: LayerCall, most: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Sum ``x x^T`` over the inputs that a call's weights are multiplied by.

    Args:
        most: positions to take; of more a random choice is taken, without replacement.

    Returns:
        The sums in float64, (groups, columns, columns) with columns in the order of :func:`.as_matrix`, and how many
        positions they are of.
    """
    if call.weight.ndim == 2:
        inputs = call.input.reshape(-1, 1, call.input.shape[-1])
        places: tuple[Tensor, ...] = (_choose(len(inputs), most, generator, inputs.device),)
    else:
        inputs = windows(call)
        _, height, width = inputs.shape[:3]
        chosen = _choose(inputs.shape[:3].numel(), most, generator, inputs.device)
        places = chosen // (height * width), chosen // width % height, chosen % width
    groups, columns = call.groups, call.weight[0].numel()
    sums = torch.zeros(groups, columns, columns, dtype=torch.float64, device=inputs.device)
    at_once = max(1, _CHUNK // (groups * columns))
    count = len(places[0])
    for start in range(0, count, at_once):
        taken = inputs[tuple(place[start : start + at_once] for place in places)]
        by_group = taken.reshape(len(taken), groups, columns).transpose(0, 1).to(torch.float64)
        sums += by_group.transpose(1, 2) @ by_group
    return sums, count


def _choose(available: int, most: int, generator: torch.Generator, device: torch.device) -> Tensor:
    if available <= most:
        return torch.arange(available, device=device)
    return torch.randperm(available, generator=generator)[:most].to(device)
