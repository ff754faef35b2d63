"""Exact reversal: streams on a fixed grid, where floating-point addition loses nothing.

``(x + f) - f`` is ``x`` in real numbers, not in floating point. Let every stream's first value and every edge's output be a
multiple of ``2**-bits``. A float with a ``p``-bit significand (24 in float32, 53 in float64) holds every such multiple below
``2**(p - bits)`` in magnitude, so sums and differences in that range are exact in any order, and what is rebuilt is
bit-identical to what was there, at any depth.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

#: Steps of 2**-13 = 1.2e-4, exact below 2**11 = 2048 in float32: batch-normalised edges add values of order one.
DEFAULT_BITS = 13

_SIGNIFICAND_BITS = {torch.float32: 24, torch.float64: 53}


class ExactReversalWarning(UserWarning):
    """An exact reversal was asked for and could not be kept; the message says where and why."""


class ReversalPrecisionWarning(UserWarning):
    """Ordinary reversal runs in a setting where its gradients are visibly inexact."""


def warn_half_precision(dtype: torch.dtype) -> None:
    """Say that ordinary reversal under half-precision autocast is inexact, and what to do."""
    warnings.warn(
        f"reversible layers under {dtype} autocast without exact=True: the last-bit errors of rebuilt activations flip "
        "half-precision roundings inside the edges, and gradients differ from stored mode's by percents, more with depth. "
        "exact=True (or revbifpn.set_exact(model)) makes them bit-identical at little cost. Said once a model.",
        ReversalPrecisionWarning,
        stacklevel=2,
    )


class _RoundToGrid(torch.autograd.Function):
    """Round to multiples of ``2**-bits``; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: object, value: Tensor, bits: int) -> Tensor:
        return _round(value, bits)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _round(value: Tensor, bits: int) -> Tensor:
    return torch.round(value * 2.0**bits) * 2.0**-bits


def round_to_grid(value: Tensor, bits: int) -> Tensor:
    """Round ``value`` to the nearest multiples of ``2**-bits``, ties to even, with a straight-through gradient.

    Raises:
        TypeError: if its dtype has too short a significand to keep a useful range (anything but float32 and float64).
    """
    if value.dtype not in _SIGNIFICAND_BITS:
        raise TypeError(
            f"exact reversal needs float32 or float64 streams, got {value.dtype}: keep the model and its input in float32 "
            "and use torch.autocast for mixed precision, or set exact=False"
        )
    if torch.is_grad_enabled() and value.requires_grad:
        rounded: Tensor = _RoundToGrid.apply(value, bits)
        return rounded
    return _round(value, bits)


def exact_limit(dtype: torch.dtype, bits: int) -> float:
    """The magnitude below which sums of multiples of ``2**-bits`` are exact in ``dtype``."""
    return 2.0 ** (_SIGNIFICAND_BITS[dtype] - bits)


class ExactMonitor:
    """Checks for one forward and backward pass that the reversal really was exact; says so, once a model, where it was not.

    Two checks, each a reduction over the streams and one read-back in the backward pass: the largest magnitude of every
    stream after every layer (*range*), and sums over the first layer's inputs against sums over what was rebuilt
    (*identity*), which catches any other cause too.

    Args:
        bits: the grid's fractional bits.
        reported: what the model has said already; shared by all its passes.
    """

    def __init__(self, bits: int, reported: set[str]) -> None:
        self.bits = bits
        self.reported = reported
        self._magnitudes: list[tuple[str, Tensor]] = []
        self._fingerprint: Tensor | None = None
        self._limit = 0.0

    def begin(self, streams: Sequence[Tensor]) -> None:
        """Take the fingerprint of the first layer's inputs."""
        self._fingerprint = _fingerprint(streams)
        self._limit = exact_limit(streams[0].dtype, self.bits)

    def after(self, layer: object, outputs: Sequence[Tensor]) -> None:
        """Measure a layer's outputs; nothing waits for the device."""
        peaks = torch.stack([torch.linalg.vector_norm(stream.detach(), float("inf")) for stream in outputs])
        self._magnitudes.append((f"layer {len(self._magnitudes)} ({type(layer).__name__})", peaks))

    def check_range(self) -> None:
        """Report the first stream that left the exact range."""
        if "range" in self.reported or not self._magnitudes:
            return
        peaks = torch.cat([peaks for _, peaks in self._magnitudes]).tolist()
        names = [(layer, stream) for layer, peaks in self._magnitudes for stream in range(len(peaks))]
        for (layer, stream), peak in zip(names, peaks, strict=True):
            if not peak < self._limit:  # NaN too
                self.reported.add("range")
                warnings.warn(
                    f"exact reversal: stream {stream} after reversible {layer} reached a magnitude of {peak:.6g}, sums are "
                    f"exact only below {self._limit:.6g} ({self.bits} fractional bits), so gradients may differ from stored "
                    "mode's. Use fewer bits (exact_bits), float64, or find out why the stream grows. Said once a model.",
                    ExactReversalWarning,
                    stacklevel=2,
                )
                return

    def check_identity(self, rebuilt: Sequence[Tensor]) -> None:
        """Report streams of the first layer's input whose rebuilt values differ from the originals."""
        if "identity" in self.reported or self._fingerprint is None:
            return
        differs = [i for i, same in enumerate((_fingerprint(rebuilt) == self._fingerprint).all(dim=1).tolist()) if not same]
        if differs:
            self.reported.add("identity")
            warnings.warn(
                f"exact reversal: the rebuilt input of the first reversible layer differs from the original in stream "
                f"{', '.join(map(str, differs))}: a stream left the exact range, or an edge returned other values in the "
                "backward pass than in the forward pass (nondeterministic kernels, or an edge compiled differently for the "
                "two). Gradients may differ from stored mode's. Said once a model.",
                ExactReversalWarning,
                stacklevel=2,
            )


def _fingerprint(streams: Sequence[Tensor]) -> Tensor:
    """Sums of the values and of the magnitudes of each stream, shape (number of streams, 2), float64.

    On the grid these sums are exact in any order, so equal streams have equal fingerprints on any schedule.
    """
    sums = []
    for stream in streams:
        values = stream.detach()
        sums += [values.sum(dtype=torch.float64), torch.linalg.vector_norm(values, 1, dtype=torch.float64)]
    return torch.stack(sums).view(-1, 2)
