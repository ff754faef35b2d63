"""The protocol of reversible layers, and a layer without weights.

A *stream* is a tensor of shape (batch, channels, height, width) (any shape that the edges accept); a layer takes several,
finest first. Layers made of edges are in :mod:`.couplings`, what they compute in :mod:`.additive`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from revbifpn.reversible.forms import Setting
from revbifpn.reversible.memory_format import MemoryFormat, check_memory_format, format_to_compute_in
from revbifpn.reversible.plain import modules_in_use
from revbifpn.reversible.streams import Streams, check_count, memory_format_of, same_storage


class Held(NamedTuple):
    """Tensors of some streams in a backward pass, values or gradients.

    Attributes:
        tensors: one for each stream; None for a gradient that there is not.
        owned: for each, whether nobody else holds it, so that it may be overwritten.
    """

    tensors: list[Tensor | None]
    owned: list[bool]

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None], owned: bool) -> Held:
        return cls(list(tensors), [owned] * len(tensors))


class Reversed(NamedTuple):
    """What a layer's backward pass returns: its inputs, their gradients, and those of its parameters."""

    inputs: Held
    grads: Held
    param_grads: list[Tensor | None]


class LayerRun(Protocol):
    """One pass of one layer.

    Attributes:
        name: of the layer, for messages.
        params: the layer's parameters in this pass, in the order of :attr:`Reversed.param_grads`.
        owned: after :meth:`record`, for each output, whether it lies in memory that was made in this run, or was owned before.
    """

    name: str
    params: list[Tensor]
    owned: list[bool]

    def record(self, streams: Streams, owned: Sequence[bool]) -> Streams:
        """Map the streams without graph, in the memory of those that are ``owned``."""

    def kept(self) -> list[Tensor]:
        """What stored edges keep, to be saved with the pass."""

    def reverse(
        self, outputs: Held, grads: Held, params: Sequence[Tensor], kept: Sequence[Tensor], needs: Sequence[bool]
    ) -> Reversed:
        """Rebuild the inputs and carry the gradients back.

        Args:
            outputs: values of the output streams (of the inputs, for a layer that cannot be inverted); emptied.
            grads: gradients of the output streams; emptied.
            params: values of :attr:`params` as they were recorded.
            kept: what :meth:`kept` returned.
            needs: for each input stream, whether it takes a gradient.
        """

    def differentiable(self, streams: Streams, params: Sequence[Tensor]) -> Streams:
        """The outputs once more as differentiable functions of ``streams`` and ``params``."""


class Runner(Protocol):
    """Puts layers into a pass, see :mod:`.passes`."""

    def run(self, layer: ReversibleLayer, streams: Streams) -> Streams:
        """Run ``layer`` as the next one."""


class ReversibleLayer(nn.Module):
    """A map between tuples of streams with an inverse.

    Called by itself, outside of a :class:`.ReversibleSequential`, a layer is an ordinary module: autograd keeps what its
    edges save, and nothing is rebuilt.

    Attributes:
        exact_bits: if set, every edge's output is rounded to multiples of ``2**-exact_bits`` (see :mod:`.exact`).
    """

    exact_bits: int | None = None

    def forward(self, *streams: Tensor, in_pass: Runner | None = None) -> Streams:
        """Map the streams; :class:`.ReversibleSequential` hands in the pass that the layer is part of."""
        if in_pass is not None:
            return in_pass.run(self, streams)
        return self.transform(streams, Setting(bits=self.exact_bits))

    @abstractmethod
    def transform(self, streams: Streams, setting: Setting) -> Streams:
        """Map the streams with ordinary operations."""

    def is_lean(self) -> bool:
        """Whether all edges have lean forms, so that stored mode can keep less than autograd would."""
        return True

    @abstractmethod
    def inverse(self, *streams: Tensor) -> Streams:
        """Return the input streams of which ``streams`` are the output."""

    @abstractmethod
    def begin(self, setting: Setting, store: Any) -> LayerRun:
        """Begin a pass; ``store`` tells for each edge whether it is stored (:meth:`.AdditiveLayer.begin`)."""

    def trains(self) -> bool:
        """Whether any parameter asks for a gradient."""
        with modules_in_use:
            return any(param.requires_grad for param in self.parameters())


class SpaceToDepth(ReversibleLayer):
    """Move each ``block x block`` square of pixels into channels; no weights, exactly invertible.

    (N, C, H, W) -> (N, block * block * C, H / block, W / block). Output channel = (row in block, column in block, input
    channel), input channel fastest, unlike ``torch.nn.PixelUnshuffle``, where it is slowest. One stream.

    Args:
        block: side of the squares, in pixels.
        memory_format: what the output is laid out in (see :mod:`.memory_format`), at no cost, since everything moves anyway.
            The inverse keeps what comes in.

    Raises:
        ValueError: for an unknown memory format.
    """

    def __init__(self, block: int, memory_format: MemoryFormat = "keep") -> None:
        super().__init__()
        self.block = block
        self.memory_format = check_memory_format(memory_format)

    def extra_repr(self) -> str:
        return f"{self.block}, memory_format={self.memory_format!r}"

    def transform(self, streams: Streams, setting: Setting | None = None) -> Streams:
        check_count(streams, 1, "SpaceToDepth")
        (x,) = streams
        b, (n, c, h, w) = self.block, x.shape
        if h % b or w % b:
            raise ValueError(f"SpaceToDepth({b}): height and width must be multiples of {b}, got {h}x{w}")
        blocks = x.reshape(n, c, h // b, b, w // b, b)
        if format_to_compute_in(self.memory_format, x) == torch.channels_last:
            y = blocks.permute(0, 2, 4, 3, 5, 1).reshape(n, h // b, w // b, b * b * c)
            return (y.permute(0, 3, 1, 2),)
        return (blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, b * b * c, h // b, w // b),)

    def inverse(self, *streams: Tensor) -> Streams:
        check_count(streams, 1, "SpaceToDepth.inverse")
        (y,) = streams
        b, (n, c, h, w) = self.block, y.shape
        if c % (b * b):
            raise ValueError(f"SpaceToDepth({b}).inverse: channels must be a multiple of {b * b}, got {c}")
        blocks = y.reshape(n, b, b, c // (b * b), h, w)
        if memory_format_of(y) == torch.channels_last:
            x = blocks.permute(0, 4, 1, 5, 2, 3).reshape(n, h * b, w * b, c // (b * b))
            return (x.permute(0, 3, 1, 2),)
        return (blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b),)

    def begin(self, setting: Setting, store: Any) -> LayerRun:
        return _Permutation(self)


class _Permutation:
    """A pass of :class:`SpaceToDepth`: a permutation's transposed Jacobian is its inverse."""

    def __init__(self, layer: SpaceToDepth) -> None:
        self.layer = layer
        self.name = type(layer).__name__
        self.params: list[Tensor] = []
        self.owned: list[bool] = []

    def record(self, streams: Streams, owned: Sequence[bool]) -> Streams:
        outputs = self.layer.transform(streams)
        self.owned = [owned[0] or not same_storage(outputs[0], streams[0])]
        return outputs

    def kept(self) -> list[Tensor]:
        return []

    def reverse(
        self, outputs: Held, grads: Held, params: Sequence[Tensor], kept: Sequence[Tensor], needs: Sequence[bool]
    ) -> Reversed:
        value, grad = outputs.tensors[0], grads.tensors[0]
        assert value is not None
        inputs = Held.of(self.layer.inverse(value), outputs.owned[0])  # it may be a view
        grad = None if grad is None or not needs[0] else self.layer.inverse(grad)[0]
        return Reversed(inputs, Held.of([grad], grads.owned[0]), [])

    def differentiable(self, streams: Streams, params: Sequence[Tensor]) -> Streams:
        return self.layer.transform(streams)
