"""ReversibleSequential: reversible layers in a row, trained without keeping their activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from revbifpn.reversible.exact import DEFAULT_BITS, ExactMonitor, round_to_grid, warn_half_precision
from revbifpn.reversible.layers import ReversibleLayer, Streams
from revbifpn.reversible.tape import Tape


class ReversibleSequential(nn.Sequential):
    """Layers applied one after the other; backward rebuilds their activations instead of keeping them.

    Gradients are those of the stored mode up to rounding, or bit for bit with ``exact=True``. Memory for activations is
    constant in the number of layers: the last layer's outputs, and one edge's graph at a time during backward.

    Where no gradient is asked for (``torch.no_grad()``, nothing trainable), and while exporting, the layers just run.
    Layers in front of the first thing that needs a gradient (frozen ones, an image) run without tape, and are not rebuilt.

    What differs from ordinary modules:
        - edges run twice a step, so forward hooks on edges fire twice, the second time in backward;
        - double backward is refused;
        - a gradient must enter by the outputs, not by a tensor that a hook took from between the layers.

    Args:
        *layers: :class:`.ReversibleLayer` instances.
        reversible: False keeps activations as ordinary modules do ("stored mode"); may be switched at any time.
        exact: put the input and all edges' outputs on a grid where sums are exact (see :mod:`revbifpn.reversible.exact`).
        exact_bits: fractional bits of that grid. Sums are exact below ``2 ** (24 - exact_bits)`` in float32.

    Raises:
        TypeError: if a layer is no ReversibleLayer.
    """

    def __init__(
        self, *layers: ReversibleLayer, reversible: bool = True, exact: bool = False, exact_bits: int = DEFAULT_BITS
    ) -> None:
        for index, layer in enumerate(layers):
            if not isinstance(layer, ReversibleLayer):
                raise TypeError(f"ReversibleSequential: layer {index} is {type(layer).__name__}, not a ReversibleLayer")
        super().__init__(*layers)
        self.reversible = reversible
        self.reported: set[str] = set()
        self.set_exact(exact, exact_bits)

    def set_exact(self, exact: bool = True, exact_bits: int = DEFAULT_BITS) -> None:
        """Switch exact reversal on or off; the forward values change by the rounding.

        Raises:
            ValueError: if ``exact_bits`` leaves no useful range in float32.
        """
        if exact and not 1 <= exact_bits <= 22:
            raise ValueError(f"exact_bits must be in 1..22 (sums are exact below 2 ** (24 - exact_bits)), got {exact_bits}")
        self.exact_bits = exact_bits if exact else None
        for layer in self._layers():
            layer.exact_bits = self.exact_bits

    def extra_repr(self) -> str:
        return f"reversible={self.reversible}, exact_bits={self.exact_bits}"

    def _layers(self) -> list[ReversibleLayer]:
        return list(self)  # type: ignore[arg-type]

    def forward(self, *streams: Tensor) -> Streams:  # type: ignore[override]
        """Map the streams through all layers.

        Args:
            *streams: as many as the first layer takes.

        Returns:
            As many as the last layer gives.
        """
        if self.exact_bits is not None:
            streams = tuple(round_to_grid(stream, self.exact_bits) for stream in streams)
        if self.reversible and torch.is_grad_enabled() and not _must_be_plain(self.training):
            return self._forward_on_tape(streams)
        for layer in self._layers():
            streams = layer(*streams)
        return streams

    def inverse(self, *streams: Tensor) -> Streams:
        """Return the input streams of which ``streams`` are the output (on the grid, in exact mode)."""
        for layer in reversed(self._layers()):
            streams = layer.inverse(*streams)
        return streams

    @torch.compiler.disable  # The tape is Python state that autograd's order carries; torch.compile breaks the graph here.
    def _forward_on_tape(self, streams: Streams) -> Streams:
        layers = self._layers()
        needs = any(stream.requires_grad for stream in streams)
        first = 0 if needs else next((i for i, layer in enumerate(layers) if layer.trains()), len(layers))
        for layer in layers[:first]:
            streams = layer(*streams)
        kind = streams[0].device.type
        half = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        if half and self.exact_bits is None and "precision" not in self.reported:
            self.reported.add("precision")
            warn_half_precision(torch.get_autocast_dtype(kind))
        monitor = None if self.exact_bits is None else ExactMonitor(self.exact_bits, self.reported)
        tape = Tape(len(layers) - first, monitor)
        for layer in layers[first:]:
            streams = layer(*streams, tape=tape)
        return streams


def set_reversible(model: nn.Module, reversible: bool = True) -> nn.Module:
    """Switch every module of ``model`` that has a reversible mode; returns ``model``."""
    for module in model.modules():
        if hasattr(module, "reversible"):
            setattr(module, "reversible", reversible)  # noqa: B010  (mypy: a Module's attributes are tensors)
    return model


def set_exact(model: nn.Module, exact: bool = True, exact_bits: int = DEFAULT_BITS) -> nn.Module:
    """Switch exact reversal in every :class:`ReversibleSequential` of ``model``; returns ``model``."""
    for module in model.modules():
        if isinstance(module, ReversibleSequential):
            module.set_exact(exact, exact_bits)
    return model


def _must_be_plain(training: bool) -> bool:
    """Whether a tracer is at work that should see plain operations: an export, or eval mode under torch.compile."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return True
    return torch.compiler.is_compiling() and not training
