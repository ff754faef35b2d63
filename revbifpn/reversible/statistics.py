"""SyncBatchNorm's batch statistics, gathered across processes once a step instead of once a run.

``torch.nn.SyncBatchNorm`` gathers every process's mean and variance in its forward. A second run on the same values would
gather the same numbers, so they are kept from the first (about two floats a channel and process) and handed out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
import torch.nn.modules._functions as sync_batch_norm_module
from torch import Tensor, nn

Gather = Callable[..., Any]


def needs_gathering(module: nn.Module) -> bool:
    """Whether a module gathers statistics when it runs: a SyncBatchNorm in training mode inside a process group."""
    return isinstance(module, nn.SyncBatchNorm) and module.training and dist.is_available() and dist.is_initialized()


class GatheredStatistics:
    """What the SyncBatchNorms of one edge gathered in its first run, in their order."""

    def __init__(self) -> None:
        self._gathered: list[list[Tensor]] = []

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, SyncBatchNorms gather as always, and the results are kept."""

        def gather(real: Gather, output: Tensor | list[Tensor], *args: Any, **kwargs: Any) -> Any:
            work = real(output, *args, **kwargs)
            self._gathered.append([tensor.clone() for tensor in _tensors(output)])
            return work

        with _gathering_by(gather):
            yield

    @contextmanager
    def handed_out(self) -> Iterator[None]:
        """Inside, SyncBatchNorms get what was kept, without communication."""
        remaining = iter(self._gathered)

        def gather(real: Gather, output: Tensor | list[Tensor], *args: Any, **kwargs: Any) -> None:
            for tensor, kept in zip(_tensors(output), next(remaining), strict=True):
                tensor.copy_(kept)

        with _gathering_by(gather):
            yield


def _tensors(output: Tensor | list[Tensor]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else output


class _Distributed:
    """torch.distributed as SyncBatchNorm's function sees it, its gathering functions replaced."""

    def __init__(self, gather: Callable[..., Any]) -> None:
        self._gather = gather

    def __getattr__(self, name: str) -> Any:
        real = getattr(dist, name)
        if not name.startswith("all_gather"):  # its name differs between backends and versions
            return real
        return lambda *args, **kwargs: self._gather(real, *args, **kwargs)


@contextmanager
def _gathering_by(gather: Callable[..., Any]) -> Iterator[None]:
    # The function has no other place to step in; the name belongs to that one module, so nothing else is touched.
    before = sync_batch_norm_module.dist
    sync_batch_norm_module.dist = _Distributed(gather)  # type: ignore[assignment]
    try:
        yield
    finally:
        sync_batch_norm_module.dist = before
