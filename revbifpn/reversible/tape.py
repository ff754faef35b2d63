"""The chain of autograd functions, one a layer, and the tape that hands activations along it in the backward pass.

A layer's function saves no activation. Autograd runs the functions of a chain strictly from the last to the first, because
each takes all the outputs of the one before. So the last function keeps its outputs, rebuilds its inputs from them and puts
them on the tape, where the function before finds the values of its own outputs, and so on.

Parameters are inputs of their layer's function and their gradients are returned by it: hooks, ``torch.autograd.grad``, DDP
and FSDP see a layer's gradients as soon as the layer is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revbifpn.reversible.layers import Values
from revbifpn.reversible.recompute import check_backward

if TYPE_CHECKING:
    from revbifpn.reversible.exact import ExactMonitor
    from revbifpn.reversible.layers import ReversibleLayer, Streams
    from revbifpn.reversible.replay import EdgeRun


class Tape:
    """Carries one forward pass's activations through its backward pass.

    Args:
        length: how many layers will be run; the last one keeps its outputs.
        monitor: checks that the reversal is exact, where that was asked for.
    """

    def __init__(self, length: int, monitor: ExactMonitor | None = None) -> None:
        self.length = length
        self.monitor = monitor
        self._next = 0
        self._values: Values | None = None
        self._owner = -1

    def run(self, layer: ReversibleLayer, streams: Streams) -> Streams:
        """Run ``layer`` as the next link of the chain."""
        runs = layer.edge_runs()
        # The last edge's parameters come first: where edges share one, autograd then adds in stored mode's order.
        params = [param for run in reversed(runs) for param in run.take_params()]
        link = _Link(self, self._next, layer, runs, len(streams))
        self._next += 1
        outputs: Streams = _ReversibleFunction.apply(link, *streams, *params)
        return outputs

    def put(self, owner: int, values: Values) -> None:
        """Leave the values of layer ``owner``'s outputs."""
        self._owner, self._values = owner, values

    def take(self, owner: int) -> Values:
        """Take the values of layer ``owner``'s outputs; the tape forgets them."""
        values, self._values = self._values, None
        if values is None or self._owner != owner:
            raise RuntimeError(
                f"the backward pass reached reversible layer {owner} but not the layer after it, so nothing rebuilt its "
                "outputs: a gradient can enter a ReversibleSequential only by its outputs (or together with them). "
                "Split it in two where you take an intermediate result, or set reversible=False"
            )
        return values


@dataclass(frozen=True, slots=True)
class _Link:
    """What a layer's function needs besides tensors."""

    tape: Tape
    index: int
    layer: ReversibleLayer
    runs: list[EdgeRun]
    num_streams: int


class _ReversibleFunction(torch.autograd.Function):
    """One layer of the chain."""

    @staticmethod
    def forward(ctx: Any, link: _Link, *tensors: Tensor) -> Streams:
        ctx.set_materialize_grads(False)
        streams, params = tensors[: link.num_streams], tensors[link.num_streams :]
        monitor = link.tape.monitor
        if monitor is not None and link.index == 0:
            monitor.begin(streams)
        outputs = link.layer.transform(streams, link.runs)
        if monitor is not None:
            monitor.after(link.layer, outputs)
        kept = outputs if link.index == link.tape.length - 1 else ()
        ctx.num_kept = len(kept)
        ctx.link = link
        ctx.save_for_backward(*kept, *params)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        check_backward("reversible layers")
        link: _Link = ctx.link
        tape, num_kept = link.tape, ctx.num_kept
        saved = ctx.saved_tensors
        outputs = Values(saved[:num_kept], (False,) * num_kept) if num_kept else tape.take(link.index)
        if tape.monitor is not None and num_kept:
            tape.monitor.check_range()
        needs = ctx.needs_input_grad[1 : 1 + link.num_streams]
        # Each run gets its parameters as detached leaves: what hangs on the real ones must see one gradient, the returned one.
        remaining = iter(saved[num_kept:])
        params = [[next(remaining).detach().requires_grad_(need) for need in run.needs] for run in reversed(link.runs)]
        params.reverse()
        del saved, remaining
        result = link.layer.pull_back(link.runs, params, outputs, grads, needs)
        del outputs, grads, params
        if link.index > 0:
            tape.put(link.index - 1, result.inputs)
        elif tape.monitor is not None:
            tape.monitor.check_identity(result.inputs.streams)
        input_grads = [grad if need else None for grad, need in zip(result.input_grads, needs, strict=True)]
        param_grads = [grad for edge_grads in reversed(result.param_grads) for grad in edge_grads]
        return (None, *input_grads, *param_grads)
