"""Parts of a detector that keep their inputs instead of their inner activations, and run again in backward.

``type='Recomputed'`` makes it so for any neck or head, in one line over a config that names it::

    neck = dict(type="Recomputed", of="FPN")
    bbox_head = dict(type="Recomputed", of="RetinaHead")

The lean parts of this package (:mod:`.hrfpn`, :mod:`.fpn`, :mod:`.rpn_head`, :mod:`.mask_head`) choose better what to
recompute, each for its own case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils.checkpoint import checkpoint

#: Parts are as large as keeps their widest tensor at so many elements (16 MiB in float32).
PART_ELEMENTS = 1 << 22


def rerun_in_backward(
    function: Callable[..., Any], *inputs: Any, module: nn.Module | None = None, random: bool = False
) -> Any:
    """Run ``function(*inputs)`` and keep the inputs alone; backward runs it again, up to the last tensor that it needs.

    This is ``torch.utils.checkpoint``, with running statistics that move once a step.

    Args:
        function: must depend on its inputs, parameters and buffers alone.
        *inputs: anything; their tensors are kept.
        module: holds the norms that ``function`` runs, if it runs any.
        random: whether ``function`` draws random numbers; backward then draws the same ones.

    Returns:
        What ``function`` returns.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return function(*inputs)
    if module is not None and any(isinstance(m, nn.SyncBatchNorm) and m.training for m in module.modules()):
        return function(*inputs)  # another run would gather its statistics across processes once more

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), nullcontext() if module is None else held_statistics(module)

    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=random, context_fn=contexts)


def rerun_by_parts(function: Callable[[Tensor], Any], x: Tensor, elements: int) -> Any:
    """Run ``function(x)``, and again in backward, on parts of the batch, so that little is alive at a time.

    Args:
        function: treats the samples of its input independently; returns a tensor or a tuple of tensors, samples first.
        x: (N, ...).
        elements: numbers in the widest tensor that one sample needs.

    Returns:
        The parts' results, joined.
    """
    size = max(1, PART_ELEMENTS // max(1, elements))
    if not torch.is_grad_enabled() or len(x) <= size:
        return rerun_in_backward(function, x)
    results = [rerun_in_backward(function, part) for part in x.split(size)]
    if isinstance(results[0], Tensor):
        return torch.cat(results)
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def uses_batch_statistics(module: nn.Module) -> bool:
    """Return whether a norm in the module mixes the samples of a batch."""
    return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in module.modules())


@contextmanager
def held_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, the module's norms in training mode normalise as always and leave their running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.training]
    saved = [dict(norm._buffers) for norm in norms]
    try:
        for norm in norms:
            norm._buffers.update({name: None if b is None else b.clone() for name, b in norm._buffers.items()})
        yield
    finally:
        for norm, buffers in zip(norms, saved, strict=True):
            norm._buffers.update(buffers)


class _RecomputedLevels:
    """Put before a dense head's class: each level runs again for itself."""

    def forward_single(self, *inputs: Any, **options: Any) -> Any:
        function = partial(super().forward_single, **options)  # type: ignore[misc]
        return rerun_in_backward(function, *inputs, module=self, random=True)  # type: ignore[arg-type]


class _RecomputedForward:
    """Put before any other part's class."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        function = partial(super().forward, **options)  # type: ignore[misc]
        return rerun_in_backward(function, *inputs, module=self, random=True)  # type: ignore[arg-type]


@cache
def recomputed_class(part: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a neck or head that keeps its inputs alone; same arguments, same state-dict keys, same values.

    Dense heads, which have ``forward_single``, run again one level at a time.
    """

    def reduce(self: nn.Module) -> Any:  # pickle finds no class that was made here by its name
        return _new_recomputed, (part,), self.__dict__

    before = _RecomputedLevels if hasattr(part, "forward_single") else _RecomputedForward
    names = {"__doc__": part.__doc__, "__module__": part.__module__, "__reduce__": reduce}
    return type(f"Recomputed{part.__name__}", (before, part), names)


def _new_recomputed(part: type[nn.Module]) -> nn.Module:
    recomputed = recomputed_class(part)  # type: ignore[arg-type]
    return recomputed.__new__(recomputed)


@MODELS.register_module("Recomputed")
def build_recomputed(of: str, **arguments: Any) -> nn.Module:
    """Build ``dict(type="Recomputed", of=NAME, ...)``: the registered part NAME, its inner activations recomputed.

    Args:
        of: what ``type`` would be.
        **arguments: of that part.

    Raises:
        KeyError: if nothing of that name is registered.
    """
    with MODELS.switch_scope_and_registry(None) as registry:
        part = registry.get(of)
    if part is None:
        raise KeyError(f"Recomputed: of={of!r} is no registered part: name what would be its type, such as of='FPN'")
    module: nn.Module = recomputed_class(part)(**arguments)
    return module
