"""Recomputing an ordinary module in backward: keep its inputs instead of its inner activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from revbifpn.reversible.replay import EdgeRun


def recompute(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Run ``module(*inputs)`` and, in backward, run it again for its gradients.

    Like ``torch.utils.checkpoint``, with the replay of :class:`.EdgeRun`: running statistics move once a step, and the
    parameters are inputs of the autograd function.

    Args:
        module: takes tensors, returns one tensor.
        *inputs: kept until backward.
    """
    plain = not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    if plain or not any(t.requires_grad for t in (*inputs, *module.parameters())):
        output: Tensor = module(*inputs)
        return output
    run = EdgeRun(module)
    output = _RecomputeFunction.apply(run, len(inputs), *inputs, *run.take_params())
    return output


class _RecomputeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: EdgeRun, num_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.run, ctx.num_inputs = run, num_inputs
        ctx.save_for_backward(*tensors)
        return run.first(*tensors[:num_inputs])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        check_backward("a recomputed module")
        needs = ctx.needs_input_grad[2:]
        if grads[0] is None:  # as when DDP joins all outputs in one node and the loss takes only some of them
            return (None, None, *(None for _ in needs))
        leaves = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needs, strict=True)]
        with torch.enable_grad():
            output = ctx.run.again(leaves[ctx.num_inputs :], *leaves[: ctx.num_inputs])
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(output, wanted, grads[0], allow_unused=True))
        return (None, None, *(next(found) if need else None for need in needs))


def check_backward(what: str) -> None:
    """Refuse the backward passes that a replay cannot serve.

    Raises:
        RuntimeError: for double backward, and inside ``torch.inference_mode()``.
    """
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
