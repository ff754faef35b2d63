"""The protocol of reversible layers: maps between tuples of streams that can be run backwards.

A *stream* is a tensor of shape (batch, channels, height, width) (any shape that the edges accept); a layer takes several,
finest first. Every layer has ``forward(*streams)`` and ``inverse(*streams)``; the tape calls ``transform`` and ``pull_back``.
:mod:`.additive` and :mod:`.couplings` hold the layers that are made of edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from revbifpn.reversible.replay import EdgeRun

if TYPE_CHECKING:
    from revbifpn.reversible.tape import Tape

Streams = tuple[Tensor, ...]
MaybeGrads = Sequence[Tensor | None]


class Values(NamedTuple):
    """Values of some streams in a backward pass.

    Attributes:
        streams: the values.
        owned: for each, whether nobody else holds it, so that it may be overwritten.
    """

    streams: Streams
    owned: tuple[bool, ...]


class PullBack(NamedTuple):
    """What a layer's backward pass returns: its inputs, their gradients, and one tuple of gradients for each edge run."""

    inputs: Values
    input_grads: list[Tensor | None]
    param_grads: list[tuple[Tensor | None, ...]]


class ReversibleLayer(nn.Module):
    """A map between tuples of streams with an inverse.

    Attributes:
        exact_bits: if set, every edge's output is rounded to multiples of ``2**-exact_bits`` (see :mod:`.exact`).
    """

    exact_bits: int | None = None

    def forward(self, *streams: Tensor, tape: Tape | None = None) -> Streams:
        """Map the streams; on a ``tape`` (handed in by :class:`.ReversibleSequential`) no activation is kept."""
        if tape is not None:
            return tape.run(self, streams)
        return self.transform(streams, None)

    def inverse(self, *streams: Tensor) -> Streams:
        """Return the input streams of which ``streams`` are the output."""
        raise NotImplementedError

    def edge_runs(self) -> list[EdgeRun]:
        """One fresh :class:`.EdgeRun` for each edge, in the order in which ``transform`` runs them."""
        return []

    def trains(self) -> bool:
        """Whether any parameter asks for a gradient."""
        return any(param.requires_grad for param in self.parameters())

    def transform(self, streams: Streams, runs: list[EdgeRun] | None) -> Streams:
        """Map the streams, each edge called directly or, if ``runs`` are given, through its run."""
        raise NotImplementedError

    def pull_back(
        self, runs: list[EdgeRun], params: list[list[Tensor]], outputs: Values, grads: MaybeGrads, needs: Sequence[bool]
    ) -> PullBack:
        """Rebuild the inputs from the ``outputs`` and carry the gradients back, one run of each edge for both.

        Args:
            runs: the runs that ``transform`` was given.
            params: for each run its parameters, as detached leaves that ask for a gradient where the parameter did.
            outputs: values of the output streams; those that are owned are overwritten.
            grads: their gradients, None for an output that was not used.
            needs: for each input stream, whether it takes a gradient.
        """
        raise NotImplementedError


class SpaceToDepth(ReversibleLayer):
    """Move each ``block x block`` square of pixels into channels; no weights, exactly invertible.

    (N, C, H, W) -> (N, block * block * C, H / block, W / block). Output channel = (row in block, column in block, input
    channel), input channel fastest, unlike ``torch.nn.PixelUnshuffle``, where it is slowest. One stream; its memory format
    (contiguous or channels_last) is kept.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def extra_repr(self) -> str:
        return f"{self.block}"

    def transform(self, streams: Streams, runs: list[EdgeRun] | None) -> Streams:
        check_count(streams, 1, "SpaceToDepth")
        (x,) = streams
        b, (n, c, h, w) = self.block, x.shape
        if h % b or w % b:
            raise ValueError(f"SpaceToDepth({b}): height and width must be multiples of {b}, got {h}x{w}")
        blocks = x.reshape(n, c, h // b, b, w // b, b)
        y = blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, b * b * c, h // b, w // b)
        return (y.contiguous(memory_format=memory_format_of(x)),)

    def inverse(self, *streams: Tensor) -> Streams:
        check_count(streams, 1, "SpaceToDepth.inverse")
        (y,) = streams
        b, (n, c, h, w) = self.block, y.shape
        if c % (b * b):
            raise ValueError(f"SpaceToDepth({b}).inverse: channels must be a multiple of {b * b}, got {c}")
        blocks = y.reshape(n, b, b, c // (b * b), h, w)
        x = blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)
        return (x.contiguous(memory_format=memory_format_of(y)),)

    def pull_back(
        self, runs: list[EdgeRun], params: list[list[Tensor]], outputs: Values, grads: MaybeGrads, needs: Sequence[bool]
    ) -> PullBack:
        # A permutation's transposed Jacobian is its inverse.
        grad = grads[0]
        inputs = Values(self.inverse(*outputs.streams), outputs.owned)  # it may be a view
        return PullBack(inputs, [None if grad is None else self.inverse(grad)[0]], [])


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """channels_last or contiguous; a tensor that is both counts as contiguous."""
    is_channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last and not tensor.is_contiguous() else torch.contiguous_format


def check_count(streams: Sequence[object], expected: int, where: str) -> None:
    """Raise a ValueError that names ``where`` unless there are ``expected`` streams."""
    if len(streams) != expected:
        raise ValueError(f"{where}: expected {expected} stream{'s' if expected != 1 else ''}, got {len(streams)}")
