"""Two modules with the same weights, and what one training step makes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Sums are taken in another order than in MMDetection's parts: float32 rounding, some 1e-6 for an operator and more through a
#: network, with room for cancellation.
RTOL = 1e-4


def same_weights(plain: nn.Module, lean: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Load the weights of the first into the second, whose keys must be the same."""
    assert list(plain.state_dict()) == list(lean.state_dict())
    lean.load_state_dict(plain.state_dict())
    return plain, lean


def outputs_and_gradients(
    module: nn.Module, inputs: Sequence[Tensor], call: Callable[[Sequence[Tensor]], Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """All outputs, and gradients of the inputs and the parameters for a loss that weighs every output's number differently."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = list(flatten(call(leaves)))
    generator = torch.Generator().manual_seed(0)
    loss = sum((y * torch.randn(y.shape, generator=generator)).sum() for y in outputs)
    assert isinstance(loss, Tensor)
    module.zero_grad(set_to_none=True)
    loss.backward()  # not autograd.grad: MMDetection's with_cp cannot serve it
    grads = [leaf.grad for leaf in (*leaves, *module.parameters())]
    return [y.detach() for y in outputs], [torch.zeros(()) if grad is None else grad for grad in grads]


def flatten(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in flatten(item)]


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor], rtol: float = RTOL) -> None:
    """Each tensor is equal to its twin, as a whole: the norm of the difference against the norm."""
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        assert float((a - b).norm()) <= rtol * float(b.norm()) + 1e-9, f"tensor {index} of shape {tuple(a.shape)}"


def saved_bytes(function: Callable[[], Any]) -> int:
    """Bytes of the tensors, each storage once, that autograd keeps for the backward pass of what ``function`` returns."""
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
