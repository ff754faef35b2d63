"""ReversibleSequential: reversible layers in a row, trained without keeping their activations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from revbifpn.reversible.additive import AdditiveLayer
from revbifpn.reversible.choice import NOTHING, Choice, Chooses
from revbifpn.reversible.exact import (
    DEFAULT_BITS,
    ExactMonitor,
    Reports,
    ReversalPrecisionWarning,
    half_precision_text,
    round_to_grid,
)
from revbifpn.reversible.forms import Setting, autocast_dtype
from revbifpn.reversible.layers import ReversibleLayer
from revbifpn.reversible.passes import Pass, uncast
from revbifpn.reversible.readout import ReadOut
from revbifpn.reversible.refusals import are_transforms_active, check_replica, refuse_transforms
from revbifpn.reversible.streams import Streams, stream_dtype

Exact = bool | Literal["auto"]


class ReversibleSequential(nn.Sequential):
    """Layers applied one after the other; backward rebuilds their activations instead of keeping them.

    Gradients are those of the stored mode up to rounding, or bit for bit with ``exact=True``. Memory for activations is
    constant in the number of layers: the last layer's outputs, their gradients, and one edge at a time.

    Where no gradient is asked for (``torch.no_grad()``, nothing trainable), and while exporting, the layers just run.
    Layers in front of the first thing that needs a gradient (frozen ones, an image) are not rebuilt.

    What differs from ordinary modules:
        - edges run twice a step, so forward hooks on edges fire twice, the second time in backward;
        - double backward and torch.func's transforms are refused (stored mode has them), and so is ``nn.DataParallel``;
        - a gradient must enter by the outputs, not by a tensor that a hook took from between the layers.

    Args:
        *layers: :class:`.ReversibleLayer` instances.
        reversible: False keeps activations ("stored mode"); may be switched at any time.
        exact: put the input and all edges' outputs on a grid where sums are exact (see :mod:`.exact`); "auto" does so where
            half precision is at work in training.
        exact_bits: fractional bits of that grid. Sums are exact below ``2 ** (24 - exact_bits)`` in float32.

    Attributes:
        budget: chooses the edges that are stored in reversible mode; None for none.

    Raises:
        TypeError: if a layer is no ReversibleLayer.
        ValueError: for another ``exact``, or ``exact_bits`` that leave no useful range.
    """

    def __init__(
        self, *layers: ReversibleLayer, reversible: bool = True, exact: Exact = "auto", exact_bits: int = DEFAULT_BITS
    ) -> None:
        super().__init__()
        self.reversible = reversible
        self.budget: Chooses | None = None
        self.reports = Reports()
        self.set_exact(exact, exact_bits)
        for layer in layers:
            self.append(layer)

    def set_exact(self, exact: Exact = True, exact_bits: int | None = None) -> None:
        """Switch exact reversal; the forward values change by the rounding.

        Args:
            exact: True, False or "auto".
            exact_bits: None leaves the grid as it is.

        Raises:
            ValueError: for another ``exact``, or if ``exact_bits`` leaves no useful range in float32.
        """
        if exact not in (True, False, "auto"):
            raise ValueError(f'exact must be True, False or "auto", got {exact!r}')
        bits = exact_bits if exact_bits is not None else self.__dict__.get("bits", DEFAULT_BITS)
        if exact and not 1 <= bits <= 22:
            raise ValueError(f"exact_bits must be in 1..22 (sums are exact below 2 ** (24 - exact_bits)), got {bits}")
        self.exact, self.bits = exact, bits
        for layer in self._layers():
            layer.exact_bits = self.exact_bits

    @property
    def exact_bits(self) -> int | None:
        """The grid's fractional bits where every pass is exact; None with ``exact=False`` or "auto"."""
        return self.bits if self.exact is True else None

    def extra_repr(self) -> str:
        return f"reversible={self.reversible}, exact={self.exact!r}, bits={self.bits}"

    # What nn.Sequential has for changing a list of modules, with a check of what comes in before anything changes.

    def insert(self, index: int, module: nn.Module) -> ReversibleSequential:
        """Put a layer in front of the one at ``index``."""
        super().insert(index, self._admitted(module, index))
        return self

    def extend(self, sequential: Iterable[nn.Module]) -> ReversibleSequential:
        """Put layers at the end."""
        super().extend([self._admitted(module, index) for index, module in enumerate(sequential, len(self))])
        return self

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Put a layer at the end, under a name; ``append`` and ``*=`` end here."""
        super().add_module(name, self._admitted(module, name))

    def __setattr__(self, name: str, value: Any) -> None:
        # Item assignment ends here. Whatever is a module becomes a layer.
        super().__setattr__(name, self._admitted(value, name) if isinstance(value, nn.Module) else value)

    def __getitem__(self, index: int | slice) -> Any:
        """A layer, or for a slice another ReversibleSequential of the same layers and settings."""
        if isinstance(index, slice):
            layers = self._layers()[index]
            return ReversibleSequential(*layers, reversible=self.reversible, exact=self.exact, exact_bits=self.bits)
        return super().__getitem__(index)

    def __iadd__(self, other: Iterable[nn.Module]) -> ReversibleSequential:  # type: ignore[override]
        return self.extend(other)

    def __add__(self, other: Iterable[nn.Module]) -> ReversibleSequential:  # type: ignore[override]
        chain: ReversibleSequential = self[:]
        return chain.extend(other)

    def __mul__(self, times: int) -> ReversibleSequential:
        chain: ReversibleSequential = self[:]
        chain *= times
        return chain

    def _admitted(self, module: nn.Module | None, index: int | str) -> nn.Module:
        if not isinstance(module, ReversibleLayer):
            raise TypeError(f"ReversibleSequential: layer {index} is {type(module).__name__}, not a ReversibleLayer")
        module.exact_bits = self.exact_bits
        return module

    def _layers(self) -> list[ReversibleLayer]:
        return list(self._modules.values())  # type: ignore[arg-type]

    def forward(self, *streams: Tensor, readout: ReadOut | None = None) -> Streams:  # type: ignore[override]
        """Map the streams through all layers.

        Args:
            *streams: as many as the first layer takes.
            readout: what the last layer's streams go through, where the caller does not need the streams themselves.

        Returns:
            As many streams as the last layer gives, or what ``readout`` reads from them.
        """
        training = torch.is_grad_enabled() and not _must_be_plain(self.training)
        setting = self._setting(streams, training)
        came_in = streams[0].dtype
        if setting.raised:
            streams = tuple(stream.to(stream_dtype(stream.dtype)) for stream in streams)
        if setting.bits is not None:
            streams = tuple(round_to_grid(stream, setting.bits) for stream in streams)
        outputs = self._forward_in_pass(streams, setting, readout) if training else self._plainly(streams, setting, readout)
        if setting.raised and (readout is None or setting.autocast is None):
            outputs = tuple(output.to(came_in) for output in outputs)
        return outputs

    def inverse(self, *streams: Tensor) -> Streams:
        """Return the input streams of which ``streams`` are the output (on the grid, in exact mode)."""
        for layer in reversed(self._layers()):
            streams = layer.inverse(*streams)
        return streams

    def is_exact(self, like: Tensor) -> bool:
        """Whether a pass in training that begins with a stream like ``like`` would be exact here and now."""
        half = like.dtype in (torch.bfloat16, torch.float16) or autocast_dtype(like) is not None
        return self.exact is True or (self.exact == "auto" and half)

    def _setting(self, streams: Streams, training: bool) -> Setting:
        """How the edges of this pass run."""
        if not streams:
            return Setting()
        autocast = autocast_dtype(streams[0])
        half_streams = streams[0].dtype in (torch.bfloat16, torch.float16)
        exact = self.exact is True or (training and self.is_exact(streams[0]))
        if training and self.reversible and not exact and autocast is not None:
            self.reports.warn("precision", half_precision_text(autocast), ReversalPrecisionWarning)
        return Setting(self.bits if exact else None, autocast, raised=half_streams and (training or exact))

    def _room(self, streams: Streams, exact: bool) -> float:
        """See :class:`.Setting`: what the finest edges keep anyway, or as much as there is where memory does not count."""
        # In exact mode chunks are the same in all modes: they decide the last bits of what kernels return.
        if not exact and (not self.reversible or self._choice(streams).whole):
            return math.inf
        return max(stream.nbytes for stream in streams)

    def _choice(self, streams: Streams) -> Choice:
        """What the budget buys for these streams."""
        return NOTHING if self.budget is None else self.budget.choice(streams[0].numel() // streams[0].shape[1])

    def _plainly(self, streams: Streams, setting: Setting, readout: ReadOut | None) -> Streams:
        """Without a pass: ordinary modules one after the other."""
        runner = _Plain(setting, streams)
        for layer in self._layers():
            streams = layer(*streams, in_pass=runner)
        return streams if readout is None else readout.transform(streams, setting)

    @torch.compiler.disable  # The pass is Python state that autograd's order carries; torch.compile breaks the graph here.
    def _forward_in_pass(self, streams: Streams, setting: Setting, readout: ReadOut | None) -> Streams:
        check_replica(self)
        self.reports.collect()
        setting = replace(setting, room=self._room(streams, setting.exact))
        layers = self._layers()
        keep = self._choice(streams).edges
        needs = any(stream.requires_grad for stream in streams)
        first = 0 if needs else next((i for i, layer in enumerate(layers) if layer.trains()), len(layers))
        if are_transforms_active():
            if self.reversible and (first < len(layers) or (readout is not None and readout.trains())):
                refuse_transforms("reversible layers")
            return self._plainly(streams, setting, readout)
        runner = _Plain(setting, streams)
        for layer in layers[:first]:
            streams = layer(*streams, in_pass=runner)
        if first == len(layers) and (readout is None or not readout.trains()):
            return streams if readout is None else readout.transform(streams, setting)
        names = [f"layer {i} ({type(layer).__name__})" for i, layer in enumerate(layers)][first:]
        monitored = setting.bits is not None and self.reversible
        monitor = ExactMonitor(self.bits, self.reports, names) if monitored else None
        chain = Pass(setting, monitor, first, len(names) + (readout is not None), not self.reversible, streams, keep)
        try:
            for layer in layers[first:]:
                streams = layer(*streams, in_pass=chain)
            return streams if readout is None else chain.read_out(readout, streams)
        finally:
            chain.end()


class _Plain:
    """Runs layers as ordinary modules."""

    def __init__(self, setting: Setting, streams: Streams) -> None:
        self.setting = setting
        self._streams = streams  # what the last layer returned
        self._owned = False  # whether the streams that come next are new

    def run(self, layer: ReversibleLayer, streams: Streams) -> Streams:
        streams = uncast(streams, self._streams)
        if isinstance(layer, AdditiveLayer):
            outputs = layer.transform(streams, self.setting, self._owned)
            self._owned |= layer.in_place and not any(output is stream for output in outputs for stream in streams)
        else:
            outputs = layer.transform(streams, self.setting)
        self._streams = outputs
        return outputs


def set_reversible(model: nn.Module, reversible: bool = True) -> nn.Module:
    """Switch every module of ``model`` that has a reversible mode; returns ``model``."""
    for module in model.modules():
        if hasattr(module, "reversible"):
            setattr(module, "reversible", reversible)  # noqa: B010  (mypy: a Module's attributes are tensors)
    return model


def set_exact(model: nn.Module, exact: Exact = True, exact_bits: int | None = None) -> nn.Module:
    """Switch exact reversal in every :class:`ReversibleSequential` of ``model``; returns ``model``.

    Args:
        exact: True, False or "auto".
        exact_bits: None leaves the grids as they are.
    """
    for module in model.modules():
        if isinstance(module, ReversibleSequential):
            module.set_exact(exact, exact_bits)
    return model


def _must_be_plain(training: bool) -> bool:
    """Whether a tracer is at work that should see plain operations: an export, or eval mode under torch.compile."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return True
    return torch.compiler.is_compiling() and not training
