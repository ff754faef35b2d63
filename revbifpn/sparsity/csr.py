"""Sparse products of matrices where they are faster: 1x1 convolutions and linear layers, one by one, by a stopwatch.

Zeros make an ordinary kernel no faster, and no maintained package computes unstructured sparse convolutions on x86. What
torch has is a product of a matrix in CSR form with a dense one. Whether that beats the dense product depends on the processor,
the layer's shape and its density, and often it does not. So :func:`use_csr` times every layer on the machine at hand, with the
input that the network gives it, and changes only those where the gain was measured; in the end it times the whole network.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from revbifpn.sparsity.calibration import LayerCall, LayerCalls

#: The largest difference of the two results that counts as rounding, as a fraction of the largest output.
ROUNDING = 1e-4


class CSRConv2d(nn.Module):
    """A 1x1 convolution whose weight is in CSR form; (N, in, H, W) -> (N, out, H, W). For inference alone."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", _csr(conv.weight.flatten(1)))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        y = self.weight @ x.transpose(0, 1).reshape(channels, -1)
        if self.bias is not None:
            y += self.bias
        return y.view(-1, batch, height, width).transpose(0, 1).contiguous()


class CSRLinear(nn.Module):
    """A linear layer whose weight is in CSR form; (..., in) -> (..., out). For inference alone."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", _csr(linear.weight))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        y = self.weight @ x.reshape(-1, x.shape[-1]).t()
        if self.bias is not None:
            y += self.bias
        return y.t().reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class LayerTiming:
    """A layer, timed in both forms.

    Attributes:
        name: of the layer.
        input: shape of what it was timed with.
        density: of its weight.
        dense, csr: median seconds; ``csr`` is infinite if this torch has no such product.
        used: whether the layer was changed.
    """

    name: str
    input: tuple[int, ...]
    density: float
    dense: float
    csr: float
    used: bool

    @property
    def gain(self) -> float:
        """How many times faster the CSR form is; below 1 it is slower."""
        return self.dense / self.csr


@dataclass(frozen=True)
class CSRTiming:
    """What was measured.

    Attributes:
        layers: all 1x1 convolutions and linear layers with zeros, in the order of the network's modules.
        dense, csr: median seconds of the whole network, without and with the changed layers.
    """

    layers: list[LayerTiming]
    dense: float
    csr: float

    def table(self) -> str:
        """In Markdown."""
        lines = ["| layer | input | density | dense, us | CSR, us | gain | used |", "|---|---|---|---|---|---|---|"]
        for layer in self.layers:
            times = f"{1e6 * layer.dense:.1f} | {1e6 * layer.csr:.1f} | {layer.gain:.2f}"
            shape = "x".join(map(str, layer.input))
            lines.append(f"| {layer.name} | {shape} | {layer.density:.3f} | {times} | {'yes' if layer.used else 'no'} |")
        whole = f"{1e6 * self.dense:.1f} | {1e6 * self.csr:.1f} | {self.dense / self.csr:.2f}"
        used = sum(layer.used for layer in self.layers)
        lines.append(f"| whole network | | | {whole} | {used} of {len(self.layers)} layers |")
        return "\n".join(lines)


def use_csr(
    model: nn.Module, images: Tensor, *, least_gain: float = 1.1, repeats: int = 30, dense: Sequence[str] = ()
) -> tuple[nn.Module, CSRTiming]:
    """Time every 1x1 convolution and linear layer that has zeros, and put those into CSR form where that was faster.

    Args:
        model: a pruned network in eval mode, on the CPU; it is not changed.
        images: what it will be used with, (N, C, H, W): the gain depends on the batch and on the size.
        least_gain: how many times faster a layer must be to be changed.
        repeats: timed calls of each form, in turns.
        dense: names of layers that are left alone.

    Returns:
        A copy for inference, and the timing. Where the whole network did not gain, the copy is the network as it was, and no
        layer counts as used. Keep the checkpoint of ``model``: the copy's own state dict has CSR tensors.

    Raises:
        ValueError: if the model is in training mode or not on the CPU, or has no such layer.
    """
    if model.training:
        raise ValueError("use_csr is for inference: call model.eval() first")
    layers = {
        name: module
        for name, module in model.named_modules()
        if is_candidate(module) and name not in dense and bool((module.weight == 0).any())
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no 1x1 convolution or linear layer with zeros: prune it first")
    if any(module.weight.device.type != "cpu" for module in layers.values()) or images.device.type != "cpu":
        raise ValueError("use_csr is for the CPU: move the model and the images there")
    inputs = _inputs(model, layers, images)
    if not inputs:
        raise ValueError(f"{type(model).__name__} computes none of its layers with zeros as they are: it may be fused already")
    timings: dict[str, LayerTiming] = {}
    replaced: dict[nn.Module, nn.Module] = {}
    with torch.no_grad():
        for name, module in layers.items():
            if name not in inputs:
                continue
            made, x = (CSRConv2d if isinstance(module, nn.Conv2d) else CSRLinear)(module), inputs[name]  # type: ignore[arg-type]
            before, after = _compare(module, made, x, repeats)
            used = before / after >= least_gain
            density = float((module.weight != 0).float().mean())
            timings[name] = LayerTiming(name, tuple(x.shape), density, before, after, used)
            if used:
                replaced[module] = made
        changed = copy.deepcopy(model)
        twins = dict(zip(model.modules(), changed.modules(), strict=True))
        for parent in list(changed.modules()):
            for name, child in parent._modules.items():
                for old, new in replaced.items():
                    if child is twins[old]:
                        parent._modules[name] = new.eval()
        whole = in_turns([lambda: model(images), lambda: changed(images)], max(3, repeats // 3))
    rows = list(timings.values())
    if replaced and whole[1] > whole[0]:
        rows = [LayerTiming(r.name, r.input, r.density, r.dense, r.csr, False) for r in rows]
        changed = copy.deepcopy(model)
    return changed, CSRTiming(rows, *whole)


def is_candidate(module: nn.Module) -> bool:
    """Whether a layer is a plain product of matrices: a linear layer, or a 1x1 convolution without stride and groups."""
    if type(module) is nn.Linear:
        return True
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.padding in ((0, 0), "valid", "same")
        and module.groups == 1
    )


def in_turns(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each call, taken in turns after two calls to warm up."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 2):
        for index, call in enumerate(calls):
            begin = time.perf_counter()
            call()
            if repeat >= 2:
                seconds[index].append(time.perf_counter() - begin)
    return [statistics.median(values) for values in seconds]


def _compare(module: nn.Module, made: nn.Module, x: Tensor, repeats: int) -> tuple[float, float]:
    expected = module(x)
    try:
        found = made(x)
    except RuntimeError:  # a torch without MKL
        return in_turns([lambda: module(x)], repeats)[0], float("inf")
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if difference > ROUNDING * max(scale, 1e-30):
        raise RuntimeError(f"{type(made).__name__} differs by {difference} from the dense layer, whose outputs reach {scale}")
    dense, csr = in_turns([lambda: module(x), lambda: made(x)], repeats)
    return dense, csr


def _inputs(model: nn.Module, layers: dict[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    """What each layer gets in its first call."""
    inputs: dict[str, Tensor] = {}

    def seen(name: str, call: LayerCall) -> None:
        inputs.setdefault(name, call.input.clone())

    weights = {name: module.weight for name, module in layers.items() if isinstance(module.weight, Tensor)}
    with torch.no_grad(), LayerCalls(weights, seen):
        model(images)
    return inputs


def _csr(matrix: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.detach().contiguous().to_sparse_csr()
