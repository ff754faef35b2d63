"""Parts: streams, or the halves of one, in the forward and the backward pass of a layer of couplings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from revbifpn.reversible.forms import Replay
from revbifpn.reversible.layers import Held
from revbifpn.reversible.streams import check_count, memory_format_of


class Parts:
    """Values or gradients of a layer's parts in its backward pass."""

    def __init__(self, held: Held, wiring: Sequence[tuple[int, ...]], count: int) -> None:
        self.tensors: list[Tensor | None] = [None] * count
        self.owned = [False] * count
        for index, parts in enumerate(wiring):
            tensor, held.tensors[index] = held.tensors[index], None
            if len(parts) == 1:
                self.tensors[parts[0]], self.owned[parts[0]] = tensor, held.owned[index]
            elif tensor is not None:
                for part, half in zip(parts, _halves(tensor, dense=True), strict=True):
                    self.tensors[part], self.owned[part] = half, True
            del tensor

    def own(self, part: int) -> Tensor:
        """The part's tensor, in memory that may be overwritten."""
        if not self.owned[part]:
            self.tensors[part], self.owned[part] = present(self.tensors[part]).clone(), True
        return present(self.tensors[part])

    def add(self, part: int, replay: Replay, dtype: torch.dtype) -> None:
        """Add the gradient that a replay finds to the part's; ``dtype`` is that of the part."""
        if not replay.fresh:
            for rows, chunk in replay.gradients():
                self._add_chunk(part, rows, chunk)
                del chunk
        elif (found := replay.whole_source_grad()) is not None:
            self.tensors[part], self.owned[part] = found.to(dtype), True

    def _add_chunk(self, part: int, rows: slice, chunk: Tensor) -> None:
        if chunk.shape[0] == present(self.tensors[part]).shape[0] and not self.owned[part]:
            self.tensors[part], self.owned[part] = self.tensors[part] + chunk, True  # type: ignore[operator]
        else:
            self.own(part)[rows].add_(chunk)

    def join(self, wiring: Sequence[tuple[int, ...]]) -> Held:
        """The streams that the parts make up; the parts are let go."""
        joined = Held([], [])
        for parts in wiring:
            tensors = [self.tensors[part] for part in parts]
            for part in parts:
                self.tensors[part] = None
            joined.tensors.append(_joined(tensors))
            joined.owned.append(len(parts) > 1 or self.owned[parts[0]])
        return joined


def split(
    streams: Sequence[Tensor], wiring: Sequence[tuple[int, ...]], count: int, where: str, dense: bool = False
) -> list[Tensor | None]:
    """Streams -> parts; None for a part that the couplings create."""
    check_count(streams, len(wiring), where)
    parts: list[Tensor | None] = [None] * count
    for stream, of_stream in zip(streams, wiring, strict=True):
        for part, tensor in zip(of_stream, [stream] if len(of_stream) == 1 else _halves(stream, dense), strict=True):
            parts[part] = tensor
    return parts


def join_parts(parts: list[Tensor | None], wiring: Sequence[tuple[int, ...]]) -> list[Tensor | None]:
    """Parts -> streams."""
    return [_joined([parts[part] for part in of_stream]) for of_stream in wiring]


def _halves(stream: Tensor, dense: bool) -> list[Tensor]:
    """The two halves of a stream's channels; ``dense``: each in memory of its own, as operators want it."""
    if stream.shape[1] % 2:
        raise ValueError(f"RevBlock: the number of channels must be even to be split in halves, got {stream.shape[1]}")
    halves = list(stream.chunk(2, dim=1))
    if not dense:
        return halves
    return [torch.clone(half, memory_format=memory_format_of(stream)) for half in halves]


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    if len(parts) == 1 or all(part is None for part in parts):
        return parts[0]
    known = next(part for part in parts if part is not None)
    return torch.cat([torch.zeros_like(known) if part is None else part for part in parts], dim=1)


def present(part: Tensor | None) -> Tensor:
    """The part, which has to be there."""
    assert part is not None, "a coupling reads a stream before anything created it"
    return part
