r"""The second run of a lean chain: values, then gradients. Notation as in :mod:`.lean`, with ``n`` the number of positions.

From the gradient ``du`` of ``u``, batch statistics ask for two sums over batch and positions:

.. code-block:: text

    dbeta = sum(du)     dgamma = sum(du * xhat)       dz = gamma * rstd * (du - dbeta / n - xhat * dgamma / n)

Since the statistics are known, values need no barrier over the batch: the replay goes chunk by chunk, a few samples at a time.
Gradients wait for those sums alone, so the backward pass is one *sweep* over the chunks for each unit, and what is alive
between two sweeps is one gradient of full size beside the ``xhat`` that are kept. A batch that is one chunk keeps its inner
values and uses torch's own batch norm backward: there the number of calls counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from revbifpn.reversible import kernels
from revbifpn.reversible.forms import Replay
from revbifpn.reversible.kernels import cast
from revbifpn.reversible.lean import ChainRun
from revbifpn.reversible.lean_parts import Affine, Gate, Unit, gate_grads


class _ChainReplay(Replay):
    """What both kinds share."""

    def __init__(
        self,
        run: ChainRun,
        source: Tensor,
        params: Sequence[Tensor],
        kept: Sequence[Tensor],
        grad: Tensor | None,
        wants_source: bool,
    ) -> None:
        self.run, self.form = run, run.form
        self.source, self.kept, self.grad = source, kept, grad
        self.wants_source = wants_source
        self.params = [list(params[span]) for span in run.form.spans]
        self.dtype = run.compute_dtype(source, params)
        self.weights = [cast(unit_params[0], self.dtype) for unit_params in self.params]
        self.gate_parts: dict[int, list[tuple[Tensor, ...]]] = {}  # by unit, of each chunk
        self.grads: list[list[Tensor | None]] = [[None] * len(unit_params) for unit_params in self.params]

    def param_grads(self) -> list[Tensor | None]:
        for index, parts in self.gate_parts.items():
            self.grads[index][3:] = gate_grads(parts, self.params[index][3:])
        pairs = [pair for unit in zip(self.params, self.grads, strict=True) for pair in zip(*unit, strict=True)]
        return [cast(grad, param.dtype) if grad is not None and param.requires_grad else None for param, grad in pairs]

    def _finish(self, y: Tensor, rows: slice) -> Tensor:
        if self.run.mask is not None:
            y = y * self.run.mask[rows]
        return kernels.upsample(y, self.form.scale) if self.form.scale else y

    def _unfinish(self, rows: slice, u: Tensor) -> Tensor:
        """The given gradient of the edge's value -> that of the last unit's ``u``."""
        assert self.grad is not None
        grad = self.grad[rows]
        if self.form.scale:
            grad = kernels.upsample_backward(grad, self.form.scale, u.shape[2], u.shape[3])
        if self.run.mask is not None:
            grad = grad * self.run.mask[rows]
        return self.form.units[-1].act.backward(grad, u)

    def _add(self, index: int, position: int, grad: Tensor | None) -> None:
        """Add to the gradient of a unit's parameter, in float32 at least."""
        if grad is not None:
            old = self.grads[index][position]
            self.grads[index][position] = cast(grad, _at_least_float32(grad.dtype)) if old is None else old.add_(grad)

    def _through_conv(self, index: int, dz: Tensor, x: Tensor) -> Tensor | None:
        """Backward of a unit's convolution: keeps its weight's gradient, returns its input's."""
        wants_x = index > 0 or self.wants_source
        wants_weight = self.params[index][0].requires_grad
        dx, dweight = kernels.conv_backward(
            self.form.units[index].conv, cast(dz, self.dtype), x, self.weights[index], wants_x, wants_weight
        )
        self._add(index, 0, dweight)
        return dx

    def _through_gate_and_act(self, index: int, dy: Tensor, inner: _Inner) -> Tensor:
        """Gradient of a unit's output -> of its ``u``."""
        act = self.form.units[index].act
        if inner.gate is not None:
            dy, left = inner.gate.backward(dy, act.apply(inner.u) if inner.a is None else inner.a)
            self.gate_parts.setdefault(index, []).append(left)
        return act.backward(dy, inner.u)

    def _needs_grads_up_to(self) -> int:
        """The first unit that any wanted gradient needs; none before it is differentiated."""
        if self.wants_source:
            return 0
        return next(i for i, params in enumerate(self.params) if any(param.requires_grad for param in params))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


class _Inner(NamedTuple):
    """What is kept of a unit after its norm; ``a``, which is ``act(u)``, only where memory allows."""

    u: Tensor
    a: Tensor | None
    gate: Gate | None


class WholeReplay(_ChainReplay):
    """The batch is one chunk."""

    def values(self) -> Iterator[tuple[slice, Tensor]]:
        x = cast(self.source, self.dtype)
        self.inputs: list[Tensor] = []
        self.zs: list[Tensor] = []
        self.stats: list[tuple[Tensor, Tensor]] = []
        self.inners: list[_Inner] = []
        for index, unit in enumerate(self.form.units):
            z = self.kept[index] if self.kept else kernels.conv(unit.conv, x, self.weights[index])
            u = self._normalise(index, unit, z)
            a = unit.act.apply(u)
            gate = Gate(unit, self.params[index][3:]) if unit.se is not None else None
            y = a if gate is None else a * gate.of(a)
            self.inputs.append(x)
            self.zs.append(z)
            self.inners.append(_Inner(u, None if gate is None or self.run.setting.frugal else a, gate))
            x = y
            del u, a, y
        yield slice(None), self._finish(x, slice(None))

    def _normalise(self, index: int, unit: Unit, z: Tensor) -> Tensor:
        _, gamma, beta, *_ = self.params[index]
        stats = self.run.stats[index]
        if stats.of_batch:  # once more is cheaper than to apply what is known
            u, mean, rstd = kernels.batch_norm(z, gamma, beta, unit.norm.eps)
            self.stats.append((mean, rstd))
            return u
        affine = Affine(stats, gamma, beta)
        self.stats.append((stats.mean, stats.rstd))
        return affine.value(affine.normalise(z), self.dtype)

    def gradients(self) -> Iterator[tuple[slice, Tensor]]:
        first = self._needs_grads_up_to()
        delta = self._unfinish(slice(None), self.inners[-1].u)
        for index in reversed(range(first, len(self.form.units))):
            self.inners.pop()  # it served for delta
            dz = self._through_norm(index, delta)
            del delta
            self.zs.pop()
            dx = self._through_conv(index, dz, self.inputs.pop())
            del dz
            if index == 0:
                if dx is not None:
                    yield slice(None), dx
            elif index > first:
                assert dx is not None
                delta = self._through_gate_and_act(index - 1, dx, self.inners[index - 1])  # noqa: F841  (the next turn uses it)
                del dx

    def _through_norm(self, index: int, delta: Tensor) -> Tensor:
        z, (mean, rstd) = self.zs[index], self.stats[index]
        _, gamma, beta, *_ = self.params[index]
        if self.run.stats[index].of_batch:
            eps = self.form.units[index].norm.eps
            dz, dgamma, dbeta = kernels.batch_norm_backward(cast(delta, z.dtype), z, gamma, mean, rstd, eps)
            self._add(index, 1, dgamma)
            self._add(index, 2, dbeta)
            return dz
        affine = Affine(self.run.stats[index], gamma, beta)
        if gamma.requires_grad or beta.requires_grad:
            self._add(index, 1, (delta * affine.normalise(z)).sum((0, 2, 3)))
            self._add(index, 2, delta.sum((0, 2, 3)))
        return delta * (affine.gamma * affine.rstd)


class ChunkedReplay(_ChainReplay):
    """The batch in chunks."""

    def __init__(
        self,
        run: ChainRun,
        chunks: list[slice],
        source: Tensor,
        params: Sequence[Tensor],
        kept: Sequence[Tensor],
        grad: Tensor | None,
        wants_source: bool,
    ) -> None:
        super().__init__(run, source, params, kept, grad, wants_source)
        self.chunks = chunks
        count = len(self.form.units)
        self.affines = [Affine(stats, p[1], p[2]) for stats, p in zip(run.stats, self.params, strict=True)]
        self.xhats: list[dict[int, Tensor]] = [{} for _ in range(count)]  # by unit and chunk
        self.gates: dict[tuple[int, int], Gate] = {}
        self.deltas: list[Tensor | None] = [None] * len(chunks)  # gradients of the current unit's u
        self.positions = 0  # of the current unit's z, over the whole batch
        self._source_grad: Tensor | None = None

    def values(self) -> Iterator[tuple[slice, Tensor]]:
        last = len(self.form.units) - 1
        for chunk, rows in enumerate(self.chunks):
            x = cast(self.source[rows], self.dtype)
            for index in range(last):
                x, _ = self._inner(index, chunk, self._xhat(index, chunk, x, self._keeps(index)))
            xhat = self._xhat(last, chunk, x, self.grad is not None)
            y, inner = self._inner(last, chunk, xhat)
            del x
            if self.grad is not None:
                self._leave(last, chunk, self._unfinish(rows, inner.u), xhat)
            del xhat
            yield rows, self._finish(y, rows)
            del y, inner

    def gradients(self) -> Iterator[tuple[slice, Tensor]]:
        first = self._needs_grads_up_to()
        for index in reversed(range(first, len(self.form.units))):
            norm = self._norm_gradient(index)
            for chunk, rows in enumerate(self.chunks):
                x, below = self._recompute(index - 1, chunk) if index else (cast(self.source[rows], self.dtype), None)
                xhat = self._xhat(index, chunk, x, keep=False)
                self.xhats[index].pop(chunk, None)
                delta, self.deltas[chunk] = self.deltas[chunk], None
                assert delta is not None
                dz = norm(delta, xhat)
                del delta, xhat
                dx = self._through_conv(index, dz, x)
                del dz, x
                if index == 0:
                    if dx is not None:
                        yield rows, self._in_shared_memory(rows, dx)
                elif index > first:
                    assert dx is not None
                    assert below is not None
                    xhat_below, inner = below
                    del below
                    self._leave(index - 1, chunk, self._through_gate_and_act(index - 1, dx, inner), xhat_below)
                    del inner, xhat_below
                del dx

    def _keeps(self, index: int) -> bool:
        return self.grad is not None and not self.run.setting.frugal

    def _xhat(self, index: int, chunk: int, x: Tensor | None, keep: bool) -> Tensor:
        """A unit's normalised convolution: kept, or of its input ``x``."""
        found = self.xhats[index].get(chunk)
        if found is not None:
            return found
        if self.kept:
            return self.affines[index].normalise(self.kept[index][self.chunks[chunk]])
        assert x is not None
        z = kernels.conv(self.form.units[index].conv, x, self.weights[index])
        xhat = self.affines[index].normalise(z, overwrite=True)
        if keep:
            last = index == len(self.form.units) - 1
            self.xhats[index][chunk] = self._in_shared_memory(self.chunks[chunk], xhat) if last else xhat
        return xhat

    def _inner(self, index: int, chunk: int, xhat: Tensor) -> tuple[Tensor, _Inner]:
        """A unit's output in a chunk, and what its backward takes."""
        unit = self.form.units[index]
        u = self.affines[index].value(xhat, self.dtype)
        a = unit.act.apply(u)
        if unit.se is None:
            return a, _Inner(u, None, None)
        gate = self.gates.get((index, chunk))
        if gate is None:
            gate = self.gates[index, chunk] = Gate(unit, self.params[index][3:])
            gate.of(a)
        return a * gate.gate, _Inner(u, None, gate)

    def _recompute(self, index: int, chunk: int) -> tuple[Tensor, tuple[Tensor, _Inner]]:
        """A unit's output in a chunk once more, from what is kept nearest before it; then its ``xhat`` and :class:`_Inner`."""
        x = None
        if not self.kept and chunk not in self.xhats[index]:
            x = self._recompute(index - 1, chunk)[0] if index else cast(self.source[self.chunks[chunk]], self.dtype)
        xhat = self._xhat(index, chunk, x, keep=False)
        y, inner = self._inner(index, chunk, xhat)
        return y, (xhat, inner)

    def _leave(self, index: int, chunk: int, delta: Tensor, xhat: Tensor) -> None:
        """Leave a chunk's gradient of ``u`` to the unit's own sweep, and add it to the sums that the sweep begins with."""
        self.deltas[chunk] = self._in_shared_memory(self.chunks[chunk], delta) if index == 0 else delta
        _, gamma, beta, *_ = self.params[index]
        if self.run.stats[index].of_batch or gamma.requires_grad or beta.requires_grad:
            self._add(index, 1, (delta * xhat).sum((0, 2, 3)))
            self._add(index, 2, delta.sum((0, 2, 3)))
        if chunk == 0:
            self.positions = 0
        self.positions += delta.numel() // delta.shape[1]

    def _in_shared_memory(self, rows: slice, chunk: Tensor) -> Tensor:
        """Move a chunk into memory of the source's shape, if it fits.

        There the last unit's ``xhat``, the first unit's ``du`` and the source's gradient take each other's place.
        """
        if not self.fresh or not self.wants_source or chunk.shape[1:] != self.source.shape[1:]:
            return chunk
        if self._source_grad is None:
            self._source_grad = torch.empty_like(self.source)
        return self._source_grad[rows].copy_(chunk)

    def source_grad(self) -> Tensor | None:
        return self._source_grad

    def _norm_gradient(self, index: int) -> _NormGradient:
        stats, (dgamma, dbeta) = self.run.stats[index], self.grads[index][1:3]
        sums = (dgamma, dbeta) if stats.of_batch and dgamma is not None and dbeta is not None else None
        return _NormGradient(self.affines[index], sums, self.positions)


class _NormGradient:
    """``du, xhat -> dz``, in the memory of neither."""

    def __init__(self, affine: Affine, sums: tuple[Tensor, Tensor] | None, positions: int) -> None:
        self.factor = affine.gamma * affine.rstd
        self.by_xhat: Tensor | None = None
        if sums is not None:
            dgamma, dbeta = (total.view(-1, 1, 1) / -positions for total in sums)
            self.by_xhat, self.offset = self.factor * dgamma, self.factor * dbeta

    def __call__(self, delta: Tensor, xhat: Tensor) -> Tensor:
        if self.by_xhat is None:
            return delta * self.factor
        return torch.addcmul(self.offset, xhat, self.by_xhat).addcmul_(delta, self.factor)
