"""Heads of convolutions whose backward runs over some rows of the image at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

#: Bands are as high as keeps the widest map inside at so many elements (8 MiB in float32).
BAND_ELEMENTS = 1 << 21


def rerun_by_rows(module: nn.Module, x: Tensor, margin: int, channels: int) -> tuple[Tensor, ...]:
    """Run ``module(x)`` and keep ``x`` alone; backward runs it again on some rows at a time.

    Of the hidden maps and their gradients, each as large as ``x``, backward then holds a few MB.

    Args:
        module: returns a tuple of maps as high as its input. Each output row must depend on the input rows that are at most
            ``margin`` away, on parameters and on nothing else: convolutions of stride 1 and functions of single numbers.
        x: (N, C, H, W).
        margin: 1 for each 3x3 convolution in a row.
        channels: of the widest map inside.
    """
    params = dict(module.named_parameters())
    needed = x.requires_grad or any(p.requires_grad for p in params.values())
    if not (needed and torch.is_grad_enabled()) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        outputs: tuple[Tensor, ...] = module(x)
        return outputs
    rows = max(8 * margin, BAND_ELEMENTS // (channels * x.shape[0] * x.shape[3]))
    return _RowsFunction.apply(module, tuple(params), _bands(x.shape[2], rows, margin), x, *params.values())


class _Band(NamedTuple):
    """Rows ``begin`` to ``end``, computed from the rows ``first`` to ``last`` around them."""

    begin: int
    end: int
    first: int
    last: int

    def inner(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Cut the band's own rows out of what was computed from the rows around it."""
        return [m[:, :, self.begin - self.first : self.end - self.first] for m in maps]


def _bands(height: int, rows: int, margin: int) -> list[_Band]:
    starts = range(0, height, rows)
    ends = [min(start + rows, height) for start in starts]
    return [
        _Band(start, end, max(0, start - margin), min(height, end + margin)) for start, end in zip(starts, ends, strict=True)
    ]


class _RowsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, module: nn.Module, names: tuple[str, ...], bands: list[_Band], x: Tensor, *params: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.module, ctx.names, ctx.bands = module, names, bands
        kind = x.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.save_for_backward(x, *params)
        return tuple(module(x))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *params = ctx.saved_tensors
        _, _, _, needs_x, *needs = ctx.needs_input_grad
        leaves = [p.detach().requires_grad_(need) for p, need in zip(params, needs, strict=True)]
        weights = dict(zip(ctx.names, leaves, strict=True))
        x_grad = torch.zeros_like(x) if needs_x else None
        sums: list[Tensor | None] = [None] * len(leaves)
        for band in ctx.bands:
            rows = x[:, :, band.first : band.last].detach().requires_grad_(needs_x)
            with torch.enable_grad(), _autocast(*ctx.autocast):
                outputs = band.inner(functional_call(ctx.module, weights, (rows,)))
            pairs = [(y, g[:, :, band.begin : band.end]) for y, g in zip(outputs, grads, strict=True) if g is not None]
            if not pairs:
                break
            found = iter(_gradients(pairs, [rows, *leaves]))
            del outputs
            if x_grad is not None:
                x_grad[:, :, band.first : band.last] += next(found)
            for index, need in enumerate(needs):
                if need:
                    sums[index] = _add(sums[index], next(found))
        return (None, None, None, x_grad, *sums)


def _gradients(pairs: list[tuple[Tensor, Tensor]], leaves: list[Tensor]) -> Iterator[Tensor]:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    outputs, grads = zip(*pairs, strict=True)
    yield from torch.autograd.grad(outputs, wanted, grads, allow_unused=True, materialize_grads=True)


def _add(total: Tensor | None, grad: Tensor) -> Tensor:
    return grad if total is None else total.add_(grad)


def _autocast(kind: str, dtype: torch.dtype, enabled: bool) -> torch.autocast:
    # Its cache of low-precision weights is left out: the stand-ins here are others in every backward.
    return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
