"""Models for inference: every batch norm folded into its convolution.

In eval mode a batch norm is a fixed affine map of each channel, so ``norm(conv(x))`` is one convolution with another weight
and a bias. Beside that, fused blocks work in their own memory, and the layers between them add to their streams in place.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from revbifpn.models.blocks import ConvNormAct, MBConv, UpEdge
from revbifpn.models.pyramid import RevBiFPNPyramid
from revbifpn.reversible import kernels
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
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in fused.named_modules():
        module.training = modes[name]  # a copy of a torch.fx graph begins in training mode
    found: dict[nn.Module, _Fused] = {}  # blocks that are there twice stay one
    for name, block in list(_blocks(fused)):
        if block not in found:
            found[block] = FusedMBConv(block) if isinstance(block, MBConv) else FusedConv(block)
        made = found[block].requires_grad_(False).eval()
        if not name:
            return made  # type: ignore[return-value]  # the model is a block
        parent, _, child = name.rpartition(".")
        fused.get_submodule(parent)._modules[child] = made
    for module in fused.modules():
        if isinstance(module, AdditiveLayer):
            module.in_place = all(isinstance(coupling.edge, _Fused | UpEdge) for coupling in module.couplings())
        if isinstance(module, AdditiveLayer | RevBiFPNPyramid):
            module.forget_edges()
    return fused


def _blocks(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, ConvNormAct | MBConv]]:
    """The blocks of a model by name, an MBConv as a whole."""
    if isinstance(model, ConvNormAct | MBConv):
        yield prefix, model
        return
    for name, child in model._modules.items():
        if child is not None:
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
                f"{where} is not a convolution and a batch norm any more, but {', '.join(type(p).__name__ for p in unit)}"
            )
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(
                f"{where} has a norm without running statistics (track_running_stats=False), which cannot be folded"
            )


class _Fused(nn.Sequential):
    """Base class of fused blocks. Hooks of a block run, those of its parts do not: calling modules takes much of the time."""

    def _refuse_training(self) -> None:
        if self.training:
            raise RuntimeError(
                "this model was made by revbifpn.fuse for inference and cannot run in training mode, since its norms are "
                "folded into its convolutions: train the model that it was made from, or call eval() on this one"
            )


class FusedConv(_Fused):
    """A convolution with bias and its activation: :class:`.ConvNormAct` with the norm folded in; same shapes."""

    def __init__(self, unit: ConvNormAct) -> None:
        old = dict(unit.named_children())
        conv = fuse_conv_bn_eval(cast(nn.Conv2d, old["conv"]), cast(_BatchNorm, old["norm"]))
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
        act = old.get("act")
        if act is not None:
            parts["act"] = act
        super().__init__(parts)
        # In a tuple beside the module's own entries: to look those up costs as much as a small operator.
        self._parts = conv, act
        padding = [int(pad) for pad in conv.padding]
        self.geometry = padding, list(conv.stride), list(conv.dilation), conv.groups
        self.pointwise = conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
        self.kind = {type(None): "none", nn.Hardswish: "hardswish"}.get(type(act), "")  # oneDNN's name of it
        self._packed: _Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        self._refuse_training()
        return self.run(x, fast_for(x))

    def run(self, x: Tensor, fast: bool) -> Tensor:
        """The convolution and its activation; ``fast`` is what :func:`fast_for` says of ``x``."""
        conv, act = self._parts
        weight, bias = _parameters(conv)
        if fast and self.pointwise and x.stride(1) == 1:
            y = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        elif fast and weight.dtype == x.dtype == torch.float32 and not weight.requires_grad and self.kind:
            if self._packed is None or not self._packed.is_of(weight):
                self._packed = _Packed(weight, *self.geometry)
            fused: Tensor = _onednn()._convolution_pointwise(x, self._packed.weight, bias, *self.geometry, self.kind, [], "")
            return fused
        else:
            y = conv(x)
        return _activate(act, y)

    def add_to(self, x: Tensor, target: Tensor, fast: bool) -> None:
        """``target += self(x)``; the product of matrices adds by itself, so only the bias takes a pass of its own."""
        conv, act = self._parts
        rows = target.permute(0, 2, 3, 1)
        if not (fast and self.pointwise and act is None and x.stride(1) == 1 and rows.is_contiguous()):
            target.add_(self.run(x, fast))
            return
        weight, bias = _parameters(conv)
        rows.add_(bias).view(-1, rows.shape[3]).addmm_(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), weight.flatten(1).t())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # it can be neither copied nor saved, and is made again


class FusedSqueezeExcite(_Fused):
    """timm's ``SqueezeExcite``, in the memory of its input, by matrices."""

    def __init__(self, se: SqueezeExcite) -> None:
        super().__init__(OrderedDict(fc1=se.fc1, act=se.act, fc2=se.fc2, gate=se.gate))
        self._parts = tuple(self.children())

    def forward(self, x: Tensor) -> Tensor:
        self._refuse_training()
        return self.run(x.clone(), False)

    def run(self, x: Tensor, fast: bool) -> Tensor:
        """``x * gate(x)``, written over ``x``."""
        reduce, act, expand, gate = self._parts
        weight, bias = _parameters(reduce)
        hidden = _activate(act, F.linear(x.mean((2, 3)), weight.flatten(1), bias))
        weight, bias = _parameters(expand)
        return x.mul_(_activate(gate, F.linear(hidden, weight.flatten(1), bias))[:, :, None, None])


class FusedMBConv(_Fused):
    """:class:`.MBConv` with its norms folded in; same shapes."""

    def __init__(self, block: MBConv) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for name, part in block.named_children():
            if isinstance(part, ConvNormAct):
                parts[name] = FusedConv(part)
            elif isinstance(part, SqueezeExcite):
                parts[name] = FusedSqueezeExcite(part)
            # else stochastic depth, which does nothing in inference
        super().__init__(parts)
        *before, project = parts.values()
        self._parts = cast(list[FusedConv | FusedSqueezeExcite], before), cast(FusedConv, project)

    def forward(self, x: Tensor) -> Tensor:
        before, project = self._parts
        return project.run(self._run_all(before, x), fast_for(x))

    def add_to(self, x: Tensor, target: Tensor) -> None:
        """``target += self(x)``, where nothing takes a gradient."""
        before, project = self._parts
        project.add_to(self._run_all(before, x), target, fast_for(x))

    def _run_all(self, parts: Sequence[FusedConv | FusedSqueezeExcite], x: Tensor) -> Tensor:
        self._refuse_training()
        fast = fast_for(x)
        for part in parts:
            x = part.run(x, fast)
        return x


def _parameters(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    return conv._parameters["weight"], conv._parameters["bias"]  # type: ignore[return-value]


def _activate(act: nn.Module | None, y: Tensor) -> Tensor:
    """``act(y)``, in the memory of ``y`` where that is known to be right."""
    known = kernels.activation(act)
    return known.apply_(y) if known is not None else act(y)  # type: ignore[misc]  # None is known


class _Packed:
    """A weight in the blocked layout of oneDNN, which else would bring it into that layout in every call."""

    def __init__(self, weight: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int) -> None:
        self.source = weight.detach()  # its memory cannot become another weight's as long as it is held here
        self.key = self._key(weight)
        self.weight = _onednn()._reorder_convolution_weight(self.source, padding, stride, dilation, groups, None)

    def is_of(self, weight: Tensor) -> bool:
        """Whether ``weight`` is still what was packed."""
        return self.key == self._key(weight)

    @staticmethod
    def _key(weight: Tensor) -> tuple[int, int]:
        return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _onednn() -> Any:
    """The operators that torch's compiler puts into frozen graphs."""
    return torch.ops.mkldnn


@cache
def _has_onednn() -> bool:
    """Whether these operators are there, with kernels for this processor."""
    there = all(hasattr(_onednn(), name) for name in ("_convolution_pointwise", "_reorder_convolution_weight"))
    return there and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def fast_for(x: Tensor) -> bool:
    """Whether ``x`` may take operators that only an eager run on a CPU knows and that have no derivative."""
    if type(x) is not Tensor or x.device.type != "cpu" or x.requires_grad or torch.is_autocast_enabled("cpu"):
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and _has_onednn()
