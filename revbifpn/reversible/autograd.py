"""The autograd functions: a link of a chain of layers, and a module that is recomputed by itself.

Autograd runs the functions of a chain strictly from the last to the first, because each takes the outputs of the one before.
The last one keeps its outputs; each rebuilds its inputs and leaves them on the pass (:mod:`.passes`), where the function
before finds the values of its own outputs.

Parameters are inputs of their function and their gradients are returned by it: hooks, ``torch.autograd.grad``, DDP and FSDP
see a layer's gradients as soon as the layer is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from revbifpn.reversible.layers import Held
from revbifpn.reversible.refusals import are_batched
from revbifpn.reversible.streams import Streams

if TYPE_CHECKING:
    from revbifpn.reversible.passes import Link
    from revbifpn.reversible.recompute import Recomputed

Grads = tuple[Tensor | None, ...]


class LinkFunction(torch.autograd.Function):
    """One layer of the chain."""

    @staticmethod
    def forward(ctx: Any, link: Link, *tensors: Tensor) -> Streams:
        ctx.set_materialize_grads(False)
        ctx.link = link
        streams, params = tensors[: link.num_streams], tensors[link.num_streams :]
        monitor = link.owner.monitor
        if monitor is not None and link.index == 0:
            monitor.begin(streams)
        outputs = link.run.record(streams, link.owned)
        if monitor is not None:
            monitor.after(outputs)
        saved = {"outputs": outputs, "inputs": streams, "both": (*outputs, *streams), "": ()}[link.saves]
        kept = link.run.kept()
        ctx.counts = len(saved), len(kept)
        ctx.save_for_backward(*saved, *kept, *params)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Grads:
        link: Link = ctx.link
        owner = link.owner
        if owner.stored and (torch.is_grad_enabled() or are_batched(grads)):
            return (None, *_differentiable(link, ctx, grads))
        check_backward("reversible layers", grads)
        saved = ctx.saved_tensors
        num_saved, num_kept = ctx.counts
        kept, params = saved[num_saved : num_saved + num_kept], saved[num_saved + num_kept :]
        if link.saves:
            num_values = num_saved - link.num_streams if link.saves == "both" else num_saved
            # Nobody sees inputs that are owned, so they may be overwritten where they are saved, if this is their last use.
            spare = link.saves == "inputs" and not _keeps_graph()
            values = Held(list(saved[:num_values]), list(link.owned) if spare else [False] * num_values)
        else:
            values = owner.take_values(link.index)
        del saved
        if owner.monitor is not None and link.index == owner.count - 1:
            owner.monitor.check_range()
        held = owner.take_grads() or Held.of(grads, False)
        del grads
        needs = ctx.needs_input_grad[1 : 1 + link.num_streams]
        result = link.run.reverse(values, held, params, kept, needs)
        del values, held
        stream_grads = result.grads.tensors
        if link.index > 0 and not owner.stored:
            if link.private_before:
                owner.put(link.index - 1, result.inputs, result.grads)
                stream_grads = [None if grad is None else _token(grad) for grad in stream_grads]
            else:
                owner.put(link.index - 1, result.inputs, None)
        elif link.index == 0 and owner.monitor is not None:
            owner.monitor.check_identity([value for value in result.inputs.tensors if value is not None])
        return (None, *stream_grads, *result.param_grads)


def _differentiable(link: Link, ctx: Any, grads: Grads) -> list[Tensor | None]:
    """Gradients by ordinary operations, for derivatives of derivatives and batches of gradients: the layer once more."""
    saved = ctx.saved_tensors
    num_saved, num_kept = ctx.counts
    streams, params = saved[num_saved - link.num_streams : num_saved], saved[num_saved + num_kept :]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = link.run.differentiable(streams, params)
    used = [i for i, output in enumerate(outputs) if grads[i] is not None and output.requires_grad]
    needs = ctx.needs_input_grad[1:]
    wanted = [tensor for tensor, need in zip((*streams, *params), needs, strict=True) if need]
    found = iter(
        torch.autograd.grad(
            [outputs[i] for i in used], wanted, [grads[i] for i in used], create_graph=create_graph, allow_unused=True
        )
    )
    return [next(found) if need else None for need in needs]


class RecomputeFunction(torch.autograd.Function):
    """A module that is not reversible: its inputs are kept, and it runs again in backward."""

    @staticmethod
    def forward(ctx: Any, recomputed: Recomputed, *tensors: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.recomputed = recomputed
        output = recomputed.record(tensors[: recomputed.num_inputs])
        kept = recomputed.run.kept()
        ctx.num_kept = len(kept)
        ctx.save_for_backward(*tensors, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Grads:
        recomputed: Recomputed = ctx.recomputed
        needs = ctx.needs_input_grad[1:]
        if grads[0] is None:  # as when DDP joins all outputs in one node and the loss takes only some of them
            return (None, *(None for _ in needs))
        saved = ctx.saved_tensors
        tensors, kept = saved[: len(needs)], saved[len(needs) :]
        if recomputed.stored and (torch.is_grad_enabled() or are_batched(grads)):
            wanted = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
            create_graph = torch.is_grad_enabled()
            with torch.enable_grad():
                output = recomputed.differentiable(tensors)
            found = iter(torch.autograd.grad(output, wanted, grads[0], create_graph=create_graph, allow_unused=True))
            return (None, *(next(found) if need else None for need in needs))
        check_backward("a recomputed module", grads)
        return (None, *recomputed.gradients(tensors, kept, grads[0], needs))


def check_backward(what: str, grads: Grads) -> None:
    """Refuse the backward passes that a replay cannot serve.

    Raises:
        RuntimeError: for double backward, for a batch of backward passes at once, and inside ``torch.inference_mode()``.
    """
    if are_batched(grads):
        raise RuntimeError(
            f"several backward passes at once through {what} (is_grads_batched=True, jacobian(vectorize=True)) are not "
            "supported: set reversible=False on the model for them, or take one after the other"
        )
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"double backward through {what} is not supported (create_graph=True was asked for): "
            "set reversible=False on the model for higher-order gradients"
        )
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"backward through {what} has to rebuild its graph, which torch.inference_mode() forbids: "
            "call backward outside of it"
        )


def _keeps_graph() -> bool:
    """Whether the running backward pass leaves the graph, and all that was saved, for another one."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _token(grad: Tensor) -> Tensor:
    """Zeros of a gradient's shape without its memory."""
    return grad.new_zeros(()).expand(grad.shape)
