"""Reversible layers: maps between tuples of streams that can be run backwards.

A *stream* is a tensor of shape (batch, channels, height, width) (any shape that the edges accept); a layer takes several,
finest first. Every layer has ``forward(*streams)`` and ``inverse(*streams)``. The additive ones are lists of couplings
``target += edge(source)``: running the list backwards with minus signs is the inverse, and the one run of an edge which
that takes serves its gradient too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from revbifpn.reversible.exact import round_to_grid
from revbifpn.reversible.replay import EdgeRun

if TYPE_CHECKING:
    from revbifpn.reversible.tape import Tape

Streams = tuple[Tensor, ...]
MaybeGrads = Sequence[Tensor | None]


class Coupling(NamedTuple):
    """``parts[target] += edge(parts[source])``; ``name`` is for messages."""

    source: int
    target: int
    edge: nn.Module
    name: str


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
        _check_count(streams, 1, "SpaceToDepth")
        (x,) = streams
        b, (n, c, h, w) = self.block, x.shape
        if h % b or w % b:
            raise ValueError(f"SpaceToDepth({b}): height and width must be multiples of {b}, got {h}x{w}")
        blocks = x.reshape(n, c, h // b, b, w // b, b)
        y = blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, b * b * c, h // b, w // b)
        return (y.contiguous(memory_format=memory_format_of(x)),)

    def inverse(self, *streams: Tensor) -> Streams:
        _check_count(streams, 1, "SpaceToDepth.inverse")
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


class AdditiveLayer(ReversibleLayer):
    """A reversible layer made of couplings over *parts*: streams, or what a stream is split into."""

    def couplings(self) -> list[Coupling]:
        """The couplings in forward order. No coupling's source is changed before its inverse has read it."""
        raise NotImplementedError

    def split(self, streams: Streams) -> list[Tensor | None]:
        """Input streams -> parts; None for a part that the couplings create."""
        raise NotImplementedError

    def split_outputs(self, streams: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Output streams, or their gradients, -> parts."""
        raise NotImplementedError

    def join(self, parts: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Parts -> streams; None where a stream's parts are all None."""
        raise NotImplementedError

    def created(self) -> frozenset[int]:
        """The parts that have no input of their own."""
        return frozenset()

    def edge_runs(self) -> list[EdgeRun]:
        return [EdgeRun(coupling.edge) for coupling in self.couplings()]

    def transform(self, streams: Streams, runs: list[EdgeRun] | None) -> Streams:
        parts, dtype = self.split(streams), streams[0].dtype
        for index, coupling in enumerate(self.couplings()):
            source, target = _present(parts[coupling.source]), parts[coupling.target]
            # The view gives the edge a node of its own, so that stored mode sums gradients in the order of `pull_back`.
            run = coupling.edge if runs is None else runs[index].first
            value = self._edge_value(coupling, run, source.view_as(source), target, dtype)
            parts[coupling.target] = value if target is None else target + value
        return tuple(_present(stream) for stream in self.join(parts))

    def inverse(self, *streams: Tensor) -> Streams:
        parts, dtype, created = self.split_outputs(streams), streams[0].dtype, self.created()
        for coupling in reversed(self.couplings()):
            if coupling.target not in created:
                source, target = _present(parts[coupling.source]), _present(parts[coupling.target])
                parts[coupling.target] = target - self._edge_value(coupling, coupling.edge, source, target, dtype)
        return tuple(_present(s) for s in self.join([p for i, p in enumerate(parts) if i not in created]))

    def pull_back(
        self, runs: list[EdgeRun], params: list[list[Tensor]], outputs: Values, grads: MaybeGrads, needs: Sequence[bool]
    ) -> PullBack:
        couplings, created, dtype = self.couplings(), self.created(), outputs.streams[0].dtype
        stream_of_part = self.streams_of_parts(len(outputs.streams))
        values, part_grads = self.split_outputs(outputs.streams), self.split_outputs(grads)
        needed = self._source_needs(couplings, runs, stream_of_part, needs)
        param_grads: list[tuple[Tensor | None, ...]] = [()] * len(couplings)
        # Parts whose value or gradient is ours to change in place.
        own_values = {part for part, stream in enumerate(stream_of_part) if outputs.owned[stream]}
        own_grads: set[int] = set()
        for index in reversed(range(len(couplings))):
            coupling, run, leaves = couplings[index], runs[index], params[index]
            s, t = coupling.source, coupling.target
            source, target, grad = _present(values[s]), _present(values[t]), part_grads[t]
            source = source.detach().requires_grad_(needed[index])
            wanted = [x for x in (source, *leaves) if x.requires_grad]
            differentiate = grad is not None and bool(wanted)
            param_grads[index] = (None,) * len(leaves)
            if not differentiate and t in created:
                continue
            with torch.set_grad_enabled(differentiate):
                value = self._edge_value(coupling, partial(run.again, leaves), source, target, dtype)
            if differentiate and value.requires_grad:
                found = iter(torch.autograd.grad(value, wanted, grad, allow_unused=True))
                source_grad = next(found) if source.requires_grad else None
                param_grads[index] = tuple(next(found) if leaf.requires_grad else None for leaf in leaves)
                _accumulate(part_grads, s, source_grad, own_grads)
            if t not in created:
                if t in own_values:
                    target.sub_(value.detach())
                else:
                    values[t] = target - value.detach()
                    own_values.add(t)
            del value, source, target, leaves, wanted
        keep = [i for i in range(len(values)) if i not in created]
        inputs = tuple(_present(x) for x in self.join([values[i] for i in keep]))
        input_grads = self.join([part_grads[i] for i in keep])
        # A stream with a part that was not replaced still is, or is a view of, what somebody else holds.
        borrowed = {stream_of_part[p] for p in range(len(values)) if p not in own_values and values[p] is not None}
        owned = tuple(stream not in borrowed for stream in range(len(inputs)))
        return PullBack(Values(inputs, owned), input_grads, param_grads)

    def _source_needs(
        self, couplings: Sequence[Coupling], runs: Sequence[EdgeRun], stream_of_part: Sequence[int], needs: Sequence[bool]
    ) -> list[bool]:
        """For each coupling, whether its source takes a gradient: what autograd finds out by itself in stored mode."""
        created = self.created()
        part_needs = [False if p in created else bool(needs[stream]) for p, stream in enumerate(stream_of_part)]
        source_needs = []
        for coupling, run in zip(couplings, runs, strict=True):
            source_needs.append(part_needs[coupling.source])
            part_needs[coupling.target] |= part_needs[coupling.source] or any(run.needs)
        return source_needs

    def streams_of_parts(self, num_outputs: int) -> list[int]:
        """For each part, the index of the stream that it belongs to."""
        return list(range(num_outputs))

    def _edge_value(
        self,
        coupling: Coupling,
        run: Callable[[Tensor], Tensor],
        source: Tensor,
        target: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Run an edge, check what comes out, bring it to the streams' dtype and, in exact mode, on the grid."""
        try:
            value = run(source)
        except Exception as error:
            error.add_note(
                f"raised in {type(self).__name__}'s edge {coupling.name}, which got a tensor of shape {tuple(source.shape)}"
            )
            raise
        if target is not None and value.shape != target.shape:
            raise ValueError(
                f"{type(self).__name__}: edge {coupling.name} returned shape {tuple(value.shape)}, "
                f"its target stream has {tuple(target.shape)}"
            )
        # Under autocast an edge may return half precision; a stream kept in it would be rebuilt with errors of 1e-2.
        value = value.to(dtype)
        return value if self.exact_bits is None else round_to_grid(value, self.exact_bits)


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
        _check_count(streams, self.num_inputs, "RevSilo")
        return [*streams, *([None] * (self.num_outputs - self.num_inputs))]

    def split_outputs(self, streams: Sequence[Tensor | None]) -> list[Tensor | None]:
        _check_count(streams, self.num_outputs, "RevSilo.inverse")
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
        _check_count(streams, 1, "RevBlock")
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
        _check_count(streams, len(self.chains), "StreamWise")
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


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """channels_last or contiguous; a tensor that is both counts as contiguous."""
    is_channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last and not tensor.is_contiguous() else torch.contiguous_format


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
        known = _present(first if second is None else second)
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


def _accumulate(grads: list[Tensor | None], index: int, grad: Tensor | None, owned: set[int]) -> None:
    """``grads[index] += grad``, in place once the sum is ours."""
    old = grads[index]
    if grad is None:
        return
    if old is None:
        grads[index] = grad
    elif index in owned:
        old += grad
    else:
        grads[index] = old + grad
        owned.add(index)


def _present(part: Tensor | None) -> Tensor:
    assert part is not None, "a coupling reads a stream before anything created it"
    return part


def _check_count(streams: Sequence[object], expected: int, where: str) -> None:
    if len(streams) != expected:
        raise ValueError(f"{where}: expected {expected} stream{'s' if expected != 1 else ''}, got {len(streams)}")
