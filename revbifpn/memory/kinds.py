"""Names for what a tensor is and where it belongs: kind by operator, stage by module, stream by size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

_KINDS = {
    "convolution": "convolution",
    "native_batch_norm": "normalization",
    "_native_batch_norm_legit": "normalization",
    "native_layer_norm": "normalization",
    "native_group_norm": "normalization",
    "cudnn_batch_norm": "normalization",
    "hardswish": "activation function",
    "hardsigmoid": "activation function",
    "relu": "activation function",
    "silu": "activation function",
    "gelu": "activation function",
    "sigmoid": "activation function",
    "threshold": "activation function",
    "upsample_bilinear2d": "upsampling",
    "upsample_nearest2d": "upsampling",
    "max_pool2d_with_indices": "pooling",
    "avg_pool2d": "pooling",
    "_adaptive_avg_pool2d": "pooling",
    "mean": "pooling",
    "cat": "concatenation",
    "addmm": "matrix product",
    "mm": "matrix product",
    "bmm": "matrix product",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_softmax": "softmax",
    "_log_softmax": "softmax",
    "roi_align": "RoI features",
}


def kind_of(operator: str, phase: str, differentiable: bool) -> str:
    """Name what a tensor is, such as ``"convolution output"``, ``"gradient of convolution"`` or ``"sum or product"``.

    Args:
        operator: the ``aten`` operator that made the tensor.
        phase: when.
        differentiable: whether autograd recorded then; in backward, that is a forward run again.
    """
    if phase == "optimizer":
        return "optimizer's intermediate"
    base = operator.rstrip("_").removesuffix("_backward").removesuffix("_backward_data")
    name = _KINDS.get(operator, _KINDS.get(base, "sum or product" if base in _ELEMENTWISE else base))
    if "_backward" in operator:
        return f"gradient of {name}"
    if is_rebuilt_stream(operator, phase):
        return "rebuilt stream"
    if phase == "backward":
        return f"rebuilt {name} output" if differentiable else f"{name} in backward"
    return f"{name} output"


def is_rebuilt_stream(operator: str, phase: str) -> bool:
    """Return whether a tensor is a rebuilt stream.

    Autograd's formulas never subtract: a difference that is made in backward is a reversible layer undoing a sum.
    """
    return operator == "sub" and phase == "backward"


_ELEMENTWISE = {"add", "sub", "mul", "div", "rsub", "neg", "pow", "sqrt", "sum", "round"}


def stage_of(module: str, model: nn.Module) -> str:
    """Return the part of the model that a module lies in: its path's first name, its number in a sequence, and its class.

    ``"body.3.chains.0"`` -> ``"body.3 (StreamWise)"``.
    """
    parts = module.split(".")
    if not module:
        return "outside the model"
    depth = 2 if len(parts) > 1 and parts[1].isdigit() else 1
    path = ".".join(parts[:depth])
    try:
        return f"{path} ({type(model.get_submodule(path)).__name__})"
    except AttributeError:
        return path


def stream_of(shape: Sequence[int], image: tuple[int, int] | None) -> str:
    """``"stride 4"`` for an image batch of a quarter of the input's side, ``""`` for what is no image batch."""
    if image is None or len(shape) != 4 or min(shape[2:]) <= 1:
        return ""
    ratio = image[0] / shape[2]
    # Strided convolutions round up, so sides need not divide.
    stride = min((2**k for k in range(8)), key=lambda s: abs(s - ratio))
    fits = all(shape[2 + i] == -(-image[i] // stride) for i in range(2))
    return f"stride {stride}" if fits else ""
