"""The layers of RevBiFPN: RevSilo across streams, RevBlock inside one, and RevBlocks on all streams at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from revbifpn.reversible.additive import AdditiveLayer, Coupling
from revbifpn.reversible.layers import Streams, check_count


class RevSilo(AdditiveLayer):
    r"""Bidirectional fusion of N streams, finest first (RevBiFPN, section 3).

    .. code-block:: text

        forward    y_j = x_j + sum_{i<j} down_ij(x_i)            z_j = y_j + sum_{i>j} up_ij(y_i)
        inverse    y_j = z_j - sum_{i>j} up_ij(y_i)  for j = N-2 .. 0     x_j = y_j - sum_{i<j} down_ij(x_i)  for j = 1 .. N-1

    Args:
        down: ``{(i, j): module}`` with i < j; the module maps stream i to the shape of stream j.
        up: ``{(i, j): module}`` with i > j.
        num_inputs: how many streams come in; by default as many as go out. The streams beyond them are created:
            they have no ``x_j``, only their down edges' sum, and ``inverse`` drops them.

    Raises:
        ValueError: an edge in the wrong direction, or a created stream with nothing to create it from.
    """

    def __init__(
        self,
        down: Mapping[tuple[int, int], nn.Module],
        up: Mapping[tuple[int, int], nn.Module],
        num_inputs: int | None = None,
    ) -> None:
        super().__init__()
        pairs = [*down, *up]
        if not pairs:
            raise ValueError("RevSilo needs at least one edge")
        if wrong := [pair for pair in down if not 0 <= pair[0] < pair[1]]:
            raise ValueError(f"RevSilo: down edges (i, j) have 0 <= i < j (stream 0 is the finest), got {wrong}")
        if wrong := [pair for pair in up if not 0 <= pair[1] < pair[0]]:
            raise ValueError(f"RevSilo: up edges (i, j) have i > j >= 0 (stream 0 is the finest), got {wrong}")
        self.num_outputs = 1 + max(max(pair) for pair in pairs)
        self.num_inputs = self.num_outputs if num_inputs is None else num_inputs
        if not 1 <= self.num_inputs <= self.num_outputs:
            raise ValueError(f"RevSilo: num_inputs must be in 1..{self.num_outputs}, got {num_inputs}")
        for created in range(self.num_inputs, self.num_outputs):
            if not any(target == created for _, target in down):
                raise ValueError(f"RevSilo: stream {created} is created, so it needs a down edge (i, {created})")
        if any(source >= self.num_inputs for source, _ in down):
            raise ValueError(f"RevSilo: down edges read input streams, so their source must be below {self.num_inputs}")
        self.down = _nest(down)
        self.up = _nest(up)

    def extra_repr(self) -> str:
        return f"{self.num_inputs} -> {self.num_outputs} streams"

    def created(self) -> frozenset[int]:
        return frozenset(range(self.num_inputs, self.num_outputs))

    def couplings(self) -> list[Coupling]:
        # Each half reads its *inputs*. Taken from its last target on, no edge finds its source already updated.
        down = sorted(_flatten(self.down, "down"), key=lambda c: (-c.target, c.source))
        up = sorted(_flatten(self.up, "up"), key=lambda c: (c.target, c.source))
        return [*down, *up]

    def split(self, streams: Streams) -> list[Tensor | None]:
        check_count(streams, self.num_inputs, "RevSilo")
        return [*streams, *([None] * (self.num_outputs - self.num_inputs))]

    def split_outputs(self, streams: Sequence[Tensor | None]) -> list[Tensor | None]:
        check_count(streams, self.num_outputs, "RevSilo.inverse")
        return list(streams)

    def join(self, parts: Sequence[Tensor | None]) -> list[Tensor | None]:
        return list(parts)


class RevBlock(AdditiveLayer):
    r"""Two-stream coupling inside one stream: its channels are split into contiguous halves ``x0, x1``.

    .. code-block:: text

        forward    y1 = x1 + f(x0)      y0 = x0 + g(y1)
        inverse    x0 = y0 - g(y1)      x1 = y1 - f(x0)

    Args:
        f: maps the first half to the shape of the second.
        g: maps the second half to the shape of the first.
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f = f
        self.g = g

    def couplings(self) -> list[Coupling]:
        return [Coupling(0, 1, self.f, "f"), Coupling(1, 0, self.g, "g")]

    def split(self, streams: Streams) -> list[Tensor | None]:
        return self.split_outputs(streams)

    def split_outputs(self, streams: Sequence[Tensor | None]) -> list[Tensor | None]:
        check_count(streams, 1, "RevBlock")
        return _halves(streams[0])

    def join(self, parts: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [_join_halves(parts[0], parts[1])]

    def streams_of_parts(self, num_outputs: int) -> list[int]:
        return [0, 0]


class StreamWise(AdditiveLayer):
    """Chains of :class:`RevBlock`, one chain for each stream, as one layer.

    The halves of a stream are split once for its whole chain.

    Args:
        chains: for each stream its blocks; an empty chain leaves the stream as it is.
    """

    def __init__(self, chains: Iterable[Iterable[RevBlock]]) -> None:
        super().__init__()
        self.chains = nn.ModuleList(nn.ModuleList(chain) for chain in chains)

    def couplings(self) -> list[Coupling]:
        couplings = []
        for stream, chain in enumerate(self._blocks()):
            for depth, block in enumerate(chain):
                for source, target, edge, name in block.couplings():
                    couplings.append(
                        Coupling(2 * stream + source, 2 * stream + target, edge, f"chains[{stream}][{depth}].{name}")
                    )
        return couplings

    def _blocks(self) -> list[list[RevBlock]]:
        return [list(chain) for chain in self.chains]  # type: ignore[call-overload]

    def split(self, streams: Streams) -> list[Tensor | None]:
        return self.split_outputs(streams)

    def split_outputs(self, streams: Sequence[Tensor | None]) -> list[Tensor | None]:
        check_count(streams, len(self.chains), "StreamWise")
        parts: list[Tensor | None] = []
        for stream, chain in zip(streams, self._blocks(), strict=True):
            parts += _halves(stream) if chain else [stream, None]
        return parts

    def join(self, parts: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [
            _join_halves(parts[2 * i], parts[2 * i + 1]) if chain else parts[2 * i] for i, chain in enumerate(self._blocks())
        ]

    def streams_of_parts(self, num_outputs: int) -> list[int]:
        return [stream for stream in range(num_outputs) for _ in range(2)]


def _nest(edges: Mapping[tuple[int, int], nn.Module]) -> nn.ModuleDict:
    """``{(i, j): edge}`` -> modules named ``i.j``, finest first."""
    nested = nn.ModuleDict()
    for (source, target), edge in sorted(edges.items(), key=lambda item: item[0]):
        if str(source) not in nested:
            nested[str(source)] = nn.ModuleDict()
        cast(nn.ModuleDict, nested[str(source)])[str(target)] = edge
    return nested


def _flatten(nested: nn.ModuleDict, direction: str) -> list[Coupling]:
    return [
        Coupling(int(source), int(target), edge, f"{direction}[{source}][{target}]")
        for source, edges in nested.items()
        for target, edge in cast(nn.ModuleDict, edges).items()
    ]


def _halves(stream: Tensor | None) -> list[Tensor | None]:
    if stream is None:
        return [None, None]
    if stream.shape[1] % 2:
        raise ValueError(f"RevBlock: the number of channels must be even to be split in halves, got {stream.shape[1]}")
    return list(stream.chunk(2, dim=1))


def _join_halves(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None and second is None:
        return None
    if first is not None and second is not None and (whole := _split_from(first, second)) is not None:
        return whole
    if first is None or second is None:  # a gradient of which only one half exists
        known = first if second is None else second
        assert known is not None
        first, second = (torch.zeros_like(known) if half is None else half for half in (first, second))
    return torch.cat([first, second], dim=1)


def _split_from(first: Tensor, second: Tensor) -> Tensor | None:
    """The stream of which two tensors are still the halves, in its memory; None if there is none."""
    whole = first._base
    if (
        whole is None
        or whole is not second._base
        or whole.ndim != first.ndim
        or first.shape[1] + second.shape[1] != whole.shape[1]
    ):
        return None
    same_strides = whole.stride() == first.stride() == second.stride()
    offset = first.storage_offset()
    same_place = offset == whole.storage_offset() and second.storage_offset() == offset + first.shape[1] * whole.stride(1)
    same_shape = whole.shape[2:] == first.shape[2:] and whole.shape[0] == first.shape[0]
    return whole if same_strides and same_place and same_shape else None
