"""What a pruned network has and what it would cost: densities, FLOPs dense and sparse, bytes.

FLOPs are additions and multiplications, as torch's ``FlopCounterMode`` counts them: convolutions and products of matrices. The
sparse count leaves out those with a weight that is zero. It is what an ideal processor would save. Ordinary kernels multiply
by the zeros all the same.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

import revbifpn  # noqa: F401  (registers the timm models)
from revbifpn.models.checkpoints import find_variant, fit, locate, read, read_checkpoint
from revbifpn.sparsity.compact import Sizes, sizes
from revbifpn.sparsity.flops import count_flops


@dataclass(frozen=True)
class LayerDensity:
    """A weight of a checkpoint.

    Attributes:
        kept: how many of its numbers are not zero.
        flops: of the layer with one image, dense; None where no model was given, or the image does not reach it.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    flops: int | None = None

    @property
    def weights(self) -> int:
        """Numbers in the weight."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """The fraction of the numbers that are not zero."""
        return self.kept / self.weights


@dataclass(frozen=True)
class SparsityReport:
    """What a checkpoint holds.

    Attributes:
        source: what the file is called.
        model: the network that it belongs to; empty if it is not known.
        image: side of the image that FLOPs are for.
        layers: weights of two dimensions and more.
        others: numbers in all other tensors: norms, biases, statistics.
        flops: of the whole network with one image, dense; None where the model is not known.
        sizes: bytes of the tensors, dense and compact.
        file_bytes: of the file as it is.
    """

    source: str
    model: str
    image: int
    layers: list[LayerDensity]
    others: int
    flops: int | None
    sizes: Sizes
    file_bytes: int

    @property
    def sparse_flops(self) -> int | None:
        """FLOPs without those of weights that are zero."""
        if self.flops is None:
            return None
        saved = sum((layer.flops or 0) * (layer.weights - layer.kept) // layer.weights for layer in self.layers)
        return self.flops - saved

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"sparse_flops": self.sparse_flops}

    def __str__(self) -> str:
        lines = [
            "| weight | shape | weights | not zero | density | MFLOPs dense | MFLOPs sparse |",
            "|---|---|---|---|---|---|---|",
        ]
        for layer in self.layers:
            dense = sparse = ""
            if layer.flops is not None:
                dense, sparse = f"{layer.flops / 1e6:,.3f}", f"{layer.flops * layer.density / 1e6:,.3f}"
            shape = "x".join(map(str, layer.shape))
            cells = [layer.name, shape, f"{layer.weights:,}", f"{layer.kept:,}", f"{layer.density:.4f}", dense, sparse]
            lines.append("| " + " | ".join(cells) + " |")
        weights, kept = sum(layer.weights for layer in self.layers), sum(layer.kept for layer in self.layers)
        lines += [
            "",
            f"{self.source}" + (f", {self.model}" if self.model else ""),
            f"weights:  {kept:,} of {weights:,} are not zero (density {kept / max(weights, 1):.4f}); "
            f"{self.others:,} other numbers",
        ]
        if self.flops is not None and self.sparse_flops is not None:
            lines.append(
                f"FLOPs:    {self.flops / 1e6:,.1f} M dense, {self.sparse_flops / 1e6:,.1f} M without the zeros "
                f"({100 * self.sparse_flops / self.flops:.1f}%), one image of {self.image}x{self.image}, additions and "
                "multiplications; ordinary kernels compute the dense number"
            )
        else:
            lines.append("FLOPs:    not known without the network: name it with --model")
        lines.append(
            f"bytes:    {self.sizes.dense:,} dense, {self.sizes.compact:,} compact "
            f"({100 * self.sizes.compact / max(self.sizes.dense, 1):.1f}%); the file has {self.file_bytes:,}"
        )
        return "\n".join(lines)


def report(checkpoint: str | Path, model: str | None = None, image: int | None = None, ema: bool = True) -> SparsityReport:
    """Report on a checkpoint.

    Args:
        checkpoint: a file or address, dense or compact.
        model: timm's name of the network, or ``module:callable``; None finds a RevBiFPN by its shapes, and else reports no
            FLOPs.
        image: side of the image in pixels; None for the network's own.
        ema: of a file with two sets of weights, True takes the averaged one.

    Raises:
        FileNotFoundError, CheckpointError: if the file cannot be read, or does not fit ``model``.
        ValueError: if there is no such model, or it does not take such an image.
    """
    state_dict: dict[str, Tensor] = read_checkpoint(checkpoint, ema=ema)
    if model is None and (variant := find_variant(state_dict)) and any(key.startswith("head.") for key in state_dict):
        model = f"revbifpn_{variant}"
    flops: dict[str, int] = {}
    total = None
    side = image or 0
    if model is not None:
        network, state_dict = load_model(model, checkpoint, ema=ema)
        side = image or image_side(network)
        total, flops = _flops(network, side)
    layers, others = [], 0
    for name, tensor in state_dict.items():
        if tensor.ndim >= 2 and tensor.is_floating_point() and tensor.numel():
            kept = int((tensor != 0).sum())
            layers.append(LayerDensity(name, tuple(tensor.shape), kept, flops.get(name)))
        else:
            others += tensor.numel()
    file_bytes = locate(checkpoint).stat().st_size
    return SparsityReport(str(checkpoint), model or "", side, layers, others, total, sizes(state_dict), file_bytes)


def load_model(name: str, checkpoint: str | Path, ema: bool = True) -> tuple[nn.Module, dict[str, Tensor]]:
    """Make a network with the weights of a checkpoint, and as many classes as that has. In eval mode.

    Args:
        name: timm's, or ``module:callable``.

    Returns:
        The network, and its state dict.

    Raises:
        FileNotFoundError, CheckpointError: if the file cannot be read or does not fit.
        ValueError: if there is no such model.
    """
    loaded = read(checkpoint, ema=ema)
    if ":" in name:
        network = _call(name)
    elif timm.is_model(name):
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
        classifier = cfg.classifier if cfg is not None and isinstance(cfg.classifier, str) else "fc"
        weight = read_checkpoint(checkpoint, ema=ema).get(f"{classifier}.weight")
        network = timm.create_model(name, **({} if weight is None else {"num_classes": len(weight)}))
    else:
        raise ValueError(f"timm knows no model {name!r}: give a name of timm.list_models(), or module:callable")
    fitted = fit(loaded.state_dict, network, loaded.source)
    network.load_state_dict(fitted)
    return network.eval(), network.state_dict()


def _call(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    try:
        network = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{name}: there is no such function without arguments ({error})") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} returns {type(network).__name__}, not a network")
    return network


def image_side(model: nn.Module) -> int:
    """The side of the images that a timm model is made for; 224 where it says none."""
    size: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return int((size.get("input_size") or (3, 224, 224))[-1])


def image_channels(model: nn.Module) -> int:
    """The channels of a model's images."""
    size: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return int(getattr(model, "in_chans", None) or (size.get("input_size") or (3,))[0])


def _flops(model: nn.Module, side: int) -> tuple[int, dict[str, int]]:
    try:
        found = count_flops(model, (1, image_channels(model), side, side))
    except Exception as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{type(model).__name__} takes no image of {side}x{side}: {message}") from error
    return found.total, found.layers
