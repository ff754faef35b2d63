"""The layers of RevBiFPN: RevSilo across streams, RevBlock inside one, and RevBlocks on all streams at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import nn

from revbifpn.reversible.additive import AdditiveLayer
from revbifpn.reversible.plan import Coupling, Wiring


class RevSilo(AdditiveLayer):
    r"""Bidirectional fusion of N streams, finest first (RevBiFPN, section 3).

    .. code-block:: text

        forward    y_j = x_j + sum_{i<j} down_ij(x_i)            z_j = y_j + sum_{i>j} up_ij(y_i)
        inverse    y_j = z_j - sum_{i>j} up_ij(y_i)  for j = N-2 .. 0     x_j = y_j - sum_{i<j} down_ij(x_i)  for j = 1 .. N-1

    In training, memory is saved only inside a :class:`.ReversibleSequential`. A silo that is called by itself stores what
    autograd keeps of each edge (the input of every convolution, norm and activation in it); its sums add nothing to that.

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

    def wiring(self) -> Wiring:
        # Each half reads its *inputs*. Taken from its last target on, no edge finds its source already updated.
        down = sorted(_flatten(self.down, "down"), key=lambda c: (-c.target, c.source))
        up = sorted(_flatten(self.up, "up"), key=lambda c: (c.target, c.source))
        return Wiring([*down, *up], [(i,) for i in range(self.num_inputs)], [(i,) for i in range(self.num_outputs)])


class RevBlock(AdditiveLayer):
    r"""Two-stream coupling inside one stream: its channels are split into contiguous halves ``x0, x1``.

    .. code-block:: text

        forward    y1 = x1 + f(x0)      y0 = x0 + g(y1)
        inverse    x0 = y0 - g(y1)      x1 = y1 - f(x0)

    In training, memory is saved only inside a :class:`.ReversibleSequential`. A block that is called by itself stores what
    autograd keeps of ``f`` and ``g`` (the input of every convolution, norm and activation in them); its sums add nothing.

    Args:
        f: maps the first half to the shape of the second.
        g: maps the second half to the shape of the first.
    """

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f = f
        self.g = g

    def wiring(self) -> Wiring:
        return Wiring([Coupling(0, 1, self.f, "f"), Coupling(1, 0, self.g, "g")], [(0, 1)], [(0, 1)])


class StreamWise(AdditiveLayer):
    """Chains of :class:`RevBlock`, one chain for each stream, as one layer.

    The halves of a stream are split once for its whole chain. Called by itself in training, it stores what its blocks do.

    Args:
        chains: for each stream its blocks; an empty chain leaves the stream as it is.
    """

    def __init__(self, chains: Iterable[Iterable[RevBlock]]) -> None:
        super().__init__()
        self.chains = nn.ModuleList(nn.ModuleList(chain) for chain in chains)

    def wiring(self) -> Wiring:
        couplings = []
        chains: list[list[RevBlock]] = [list(chain) for chain in self.chains]  # type: ignore[call-overload]
        for stream, chain in enumerate(chains):
            for depth, block in enumerate(chain):
                for half in block.couplings():
                    name = f"chains[{stream}][{depth}].{half.name}"
                    couplings.append(Coupling(2 * stream + half.source, 2 * stream + half.target, half.edge, name))
        streams = [(2 * i, 2 * i + 1) if chain else (2 * i,) for i, chain in enumerate(chains)]
        return Wiring(couplings, streams, streams)


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
