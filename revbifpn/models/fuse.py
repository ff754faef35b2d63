"""Models for inference: every batch norm folded into its convolution.

In eval mode a batch norm is a fixed affine map of each channel, so ``norm(conv(x))`` is one convolution with another weight
and a bias. Beside that, fused blocks work in their own memory, and the layers between them add to their streams in place.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SqueezeExcite
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from revbifpn.models.blocks import ConvNormAct, MBConv
from revbifpn.reversible.additive import AdditiveLayer
from revbifpn.reversible.forms import is_unusual

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model, inplace: bool = False) -> Model:
    """Make a model for inference: its convolutions with their batch norms folded in.

    It computes what ``model`` computes in eval mode, up to rounding (1e-4 of the outputs' scale in float32), in less time. Its
    modules have the names that they had; the norms are gone, and the convolutions have biases. Weights of fused blocks are
    frozen, and the model refuses to run in training mode. ``torch.export``, ONNX and ``torch.jit.trace`` take it as any other.
    In exact mode (``exact=True``) streams are still rounded to the grid, of which a folded weight may choose a neighbour.

    Forward hooks inside it see streams that are overwritten later: clone what is to be kept.

    Args:
        model: anything in eval mode that contains RevBiFPN's blocks: classifier, pyramid, timm's wrappers, a detector.
        inplace: change ``model`` itself; by default it stays as it is, and a copy is fused.

    Raises:
        ValueError: if nothing in it can be fused, if parts of it are in training mode or normalise by each batch, or if a
            block has hooks, parametrizations, a compiled call or a ``forward`` of its own, which would be lost.

    Example::

        model = revbifpn.fuse(timm.create_model("revbifpn_s0", checkpoint_path="revbifpn_s0.pth.tar").eval())
        with torch.inference_mode():
            logits = model(image)
    """
    blocks = list(_blocks(model))
    for name, block in blocks:
        _check(name, block)
    if not blocks and not any(isinstance(module, _Fused) for module in model.modules()):
        raise ValueError(f"fuse: {type(model).__name__} contains no blocks of RevBiFPN, so there is nothing to fuse")
    fused = model if inplace else copy.deepcopy(model)
    for name, block in list(_blocks(fused)):
        made = FusedMBConv(block) if isinstance(block, MBConv) else FusedConv(block)
        made.requires_grad_(False).eval()
        if not name:
            return made  # type: ignore[return-value]  # the model is a block
        parent, _, child = name.rpartition(".")
        fused.get_submodule(parent)._modules[child] = made
    for module in fused.modules():
        if isinstance(module, AdditiveLayer):
            module.in_place = True
    return fused


def _blocks(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, ConvNormAct | MBConv]]:
    """The blocks of a model by name, an MBConv as a whole."""
    if isinstance(model, ConvNormAct | MBConv):
        yield prefix, model
        return
    for name, child in model.named_children():
        yield from _blocks(child, f"{prefix}.{name}" if prefix else name)


def _check(name: str, block: ConvNormAct | MBConv) -> None:
    """Raise unless a block can be fused."""
    where = f"fuse: block {name or type(block).__name__!r}"
    units = [module for module in block.modules() if isinstance(module, ConvNormAct)]
    for part in block.modules():
        if is_unusual(part):
            raise ValueError(
                f"{where} has hooks, parametrizations, a compiled call or a forward of its own, which fusing would lose: "
                "remove it from the model first"
            )
    if any(part.training for part in block.modules()):
        raise ValueError(f"{where} is in training mode, where norms depend on the batch: call model.eval() first")
    for unit in units:
        parts = dict(unit.named_children())
        norm = parts.get("norm")
        if not isinstance(norm, _BatchNorm) or type(parts.get("conv")) is not nn.Conv2d:
            raise ValueError(
                f"{where} is no convolution with a batch norm any more, but {', '.join(type(p).__name__ for p in unit)}"
            )
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(
                f"{where} has a norm without running statistics (track_running_stats=False), which cannot be folded"
            )


class _Fused(nn.Sequential):
    """Base class of fused blocks."""

    def _refuse_training(self) -> None:
        if self.training:
            raise RuntimeError(
                "this model was made by revbifpn.fuse for inference and cannot run in training mode, since its norms are "
                "folded into its convolutions: train the model that it was made from, or call eval() on this one"
            )


class FusedConv(_Fused):
    """A convolution with bias and its activation: :class:`.ConvNormAct` with the norm folded in; same shapes."""

    def __init__(self, unit: ConvNormAct) -> None:
        parts = dict(unit.named_children())
        self_parts: OrderedDict[str, nn.Module] = OrderedDict(conv=_fold(parts["conv"], parts["norm"]))
        if "act" in parts:
            self_parts["act"] = parts["act"]
        super().__init__(self_parts)
        self.pointwise = _is_pointwise(self_parts["conv"])

    def forward(self, x: Tensor) -> Tensor:
        self._refuse_training()
        conv = cast(nn.Conv2d, self._modules["conv"])
        y = _pointwise(conv, x) if self.pointwise and _computes_matrices(x) else conv(x)
        act = self._modules.get("act")
        if act is None:
            return y
        return F.hardswish(y, inplace=True) if type(act) is nn.Hardswish else act(y)


class FusedMBConv(_Fused):
    """:class:`.MBConv` with its norms folded in; same shapes."""

    def __init__(self, block: MBConv) -> None:
        parts = OrderedDict(
            (name, FusedConv(part) if isinstance(part, ConvNormAct) else part)
            for name, part in block.named_children()
            if not isinstance(part, DropPath)  # nothing is dropped in inference
        )
        super().__init__(parts)

    def forward(self, x: Tensor) -> Tensor:
        self._refuse_training()
        for part in self._modules.values():
            x = _squeeze_excite(part, x) if type(part) is SqueezeExcite else part(x)
        return x


def _squeeze_excite(se: SqueezeExcite, x: Tensor) -> Tensor:
    """Squeeze-excite in the memory of ``x``, by matrices: 1x1 convolutions of one pixel cost more time to call."""
    hidden = se.act(F.linear(x.mean((2, 3)), se.fc1.weight.flatten(1), se.fc1.bias))
    gate = se.gate(F.linear(hidden, se.fc2.weight.flatten(1), se.fc2.bias))
    return x.mul_(gate[:, :, None, None])


def _fold(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    folded: nn.Conv2d = fuse_conv_bn_eval(cast(nn.Conv2d, conv), cast(_BatchNorm, norm))
    return folded


def _is_pointwise(conv: nn.Module) -> bool:
    conv = cast(nn.Conv2d, conv)
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def _computes_matrices(x: Tensor) -> bool:
    """Whether a pointwise convolution of ``x`` had better be a product of matrices; an export keeps the convolution."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not traced and x.device.type == "cpu" and x.stride(1) == 1


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)
