"""Exact reversal: streams on a fixed grid, where floating-point addition loses nothing.

``(x + f) - f`` is ``x`` in real numbers, not in floating point. Let every stream's first value and every edge's output be a
multiple of ``2**-bits``. A float with a ``p``-bit significand (24 in float32, 53 in float64) holds every such multiple below
``2**(p - bits)`` in magnitude, so sums and differences in that range are exact in any order, and what is rebuilt is
bit-identical to what was there, at any depth.

``exact="auto"``, the default everywhere, does this where half precision is at work in training (autocast, parameters
or images), since ordinary reversal is off by percents there; in float32 it reverses ordinarily, with errors of some 1e-6.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from revbifpn.reversible.refusals import are_transforms_active

#: Steps of 2**-13 = 1.2e-4, exact below 2**11 = 2048 in float32: batch-normalised edges add values of order one.
DEFAULT_BITS = 13

_SIGNIFICAND_BITS = {torch.float32: 24, torch.float64: 53}


class ExactReversalWarning(UserWarning):
    """An exact reversal was asked for and could not be kept; the message says where and why."""


class ReversalPrecisionWarning(UserWarning):
    """Ordinary reversal runs in a setting where its gradients are visibly inexact."""


def half_precision_text(dtype: torch.dtype) -> str:
    """What ordinary reversal in half precision means, and what to do."""
    return (
        f"reversible layers under {dtype} autocast without exact=True: the last-bit errors of rebuilt activations flip "
        "half-precision roundings inside the edges, and gradients differ from stored mode's by percents, more with depth. "
        'exact="auto" (the default) and exact=True make them bit-identical at little cost.'
    )


class _RoundToGrid(torch.autograd.Function):
    """Round to multiples of ``2**-bits``; the derivative passes straight through, whoever takes it."""

    @staticmethod
    def forward(value: Tensor, bits: int) -> Tensor:
        return _round(value, bits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.set_materialize_grads(False)  # a stream that the loss leaves out has no gradient, rather than zeros

    @staticmethod
    def backward(ctx: object, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        return grads[0], None

    @staticmethod
    def jvp(ctx: object, *tangents: Tensor | None) -> Tensor | None:
        return tangents[0]

    @staticmethod
    def vmap(info: object, in_dims: tuple[int, None], value: Tensor, bits: int) -> tuple[Tensor, int]:
        return round_to_grid(value, bits), in_dims[0]


def _round(value: Tensor, bits: int) -> Tensor:
    return torch.round(value * 2.0**bits) * 2.0**-bits


def round_to_grid(value: Tensor, bits: int) -> Tensor:
    """Round ``value`` to the nearest multiples of ``2**-bits``, ties to even, with a straight-through gradient.

    Raises:
        TypeError: if its dtype has too short a significand to keep a useful range (anything but float32 and float64).
    """
    if value.dtype not in _SIGNIFICAND_BITS:
        raise TypeError(
            f"exact reversal needs float32 or float64 streams, got {value.dtype}: put the layer into a ReversibleSequential, "
            "which keeps its streams in float32, or set exact=False"
        )
    if (torch.is_grad_enabled() and value.requires_grad) or are_transforms_active():
        rounded: Tensor = _RoundToGrid.apply(value, bits)
        return rounded
    return _round(value, bits)


def exact_limit(dtype: torch.dtype, bits: int) -> float:
    """The magnitude below which sums of multiples of ``2**-bits`` are exact in ``dtype``."""
    return 2.0 ** (_SIGNIFICAND_BITS[dtype] - bits)


class Reports:
    """What a model has to say of its passes, each thing once; shared by all its passes.

    Nothing in a training step waits for a device: what a check on a GPU found is copied to the host while the step goes on,
    and read when it has arrived, at the latest with the next pass.
    """

    def __init__(self) -> None:
        self.said: set[str] = set()
        self._pending: deque[tuple[Tensor, torch.cuda.Event, Callable[[list[float]], None]]] = deque()

    def warn(self, about: str, message: str, category: type[Warning]) -> None:
        """Warn, if nothing was said ``about`` this before."""
        if about not in self.said:
            self.said.add(about)
            warnings.warn(f"{message} Said once a model.", category, stacklevel=3)

    def read(self, found: Tensor, tell: Callable[[list[float]], None]) -> None:
        """Hand the numbers of ``found``, a vector, to ``tell`` as soon as they are on the host."""
        if is_fake(found):
            return
        if found.device.type != "cuda":
            tell(found.tolist())
        elif not torch.cuda.is_current_stream_capturing():  # a graph's replays would not call back
            host = torch.empty(found.shape, dtype=found.dtype, device="cpu", pin_memory=True).copy_(found, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending.append((host, event, tell))

    def collect(self) -> None:
        """Read what has arrived."""
        for _ in range(len(self._pending)):
            try:
                host, event, tell = self._pending.popleft()
            except IndexError:  # another thread was faster
                return
            if not event.query():
                self._pending.appendleft((host, event, tell))
                return
            tell(host.tolist())

    def __getstate__(self) -> dict[str, Any]:
        return {"said": set(self.said), "_pending": deque()}


class ExactMonitor:
    """Checks for one forward and backward pass that the reversal really was exact, and reports where it was not.

    Two checks, each a reduction over the streams: the largest magnitude of every stream after every layer (*range*), and sums
    over the first layer's inputs against sums over what was rebuilt (*identity*), which catches any other cause too.

    Args:
        bits: the grid's fractional bits.
        reports: of the model.
        layers: names of the layers that run, for messages.
    """

    def __init__(self, bits: int, reports: Reports, layers: Sequence[str]) -> None:
        self.bits = bits
        self.reports = reports
        self.layers = layers
        self._peaks: list[Tensor] = []
        self._fingerprint: Tensor | None = None
        self._limit = 0.0

    def begin(self, streams: Sequence[Tensor]) -> None:
        """Take the fingerprint of the first layer's inputs."""
        self._fingerprint = _fingerprint(streams)
        self._limit = exact_limit(streams[0].dtype, self.bits)

    def after(self, outputs: Sequence[Tensor]) -> None:
        """Measure a layer's outputs."""
        self._peaks.append(torch.stack([torch.linalg.vector_norm(stream.detach(), float("inf")) for stream in outputs]))

    def check_range(self) -> None:
        """Report the first stream that left the exact range."""
        peaks = self._peaks
        names = [
            (layer, stream) for layer, of_layer in zip(self.layers, peaks, strict=False) for stream in range(len(of_layer))
        ]

        def tell(found: list[float]) -> None:
            for (layer, stream), peak in zip(names, found, strict=False):
                if not peak < self._limit:  # NaN too
                    self.reports.warn(
                        "range",
                        f"exact reversal: stream {stream} after reversible {layer} reached a magnitude of {peak:.6g}, sums "
                        f"are exact only below {self._limit:.6g} ({self.bits} fractional bits), so gradients may differ from "
                        "stored mode's. Use fewer bits (exact_bits), float64, or find out why the stream grows.",
                        ExactReversalWarning,
                    )
                    return

        if peaks and "range" not in self.reports.said:
            self.reports.read(torch.cat(peaks), tell)

    def check_identity(self, rebuilt: Sequence[Tensor]) -> None:
        """Report streams of the first layer's input whose rebuilt values differ from the originals."""

        def tell(found: list[float]) -> None:
            differs = [str(stream) for stream, different in enumerate(found) if different]
            if differs:
                self.reports.warn(
                    "identity",
                    f"exact reversal: the rebuilt input of the first reversible layer differs from the original in stream "
                    f"{', '.join(differs)}: a stream left the exact range, or an edge returned other values in the "
                    "backward pass than in the forward pass (nondeterministic kernels, or an edge compiled differently for "
                    "the two). Gradients may differ from stored mode's.",
                    ExactReversalWarning,
                )

        if self._fingerprint is not None and "identity" not in self.reports.said:
            self.reports.read((_fingerprint(rebuilt) != self._fingerprint).any(dim=1), tell)


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has no values: a fake or a meta tensor."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _fingerprint(streams: Sequence[Tensor]) -> Tensor:
    """Sums of the values and of the magnitudes of each stream, shape (number of streams, 2), float64.

    On the grid these sums are exact in any order, so equal streams have equal fingerprints on any schedule.
    """
    sums = []
    for stream in streams:
        values = stream.detach()
        sums += [values.sum(dtype=torch.float64), torch.linalg.vector_norm(values, 1, dtype=torch.float64)]
    return torch.stack(sums).view(-1, 2)
