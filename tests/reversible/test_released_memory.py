"""What a forward pass keeps goes when its result does, and when it is broken off."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from revbifpn.models import RevBiFPN
from revbifpn.reversible import set_exact, set_reversible

from .common import pyramid, streams


class Allocations(TorchDispatchMode):
    """The memory of all tensors that operators return inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = StorageWeakRef(tensor.untyped_storage())
                self.storages[storage.cdata] = storage
        return result

    def alive(self, besides: Iterable[Tensor]) -> int:
        """How many are still there, ``besides`` those of some tensors."""
        known = {tensor.untyped_storage()._weak_ref() for tensor in besides}
        return sum(not storage.expired() for cdata, storage in self.storages.items() if cdata not in known)


LEAKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "plain": lambda: (pyramid(norm=True, dropout=0.2).train(), streams()[0]),
    "lean": lambda: (RevBiFPN("s0", num_classes=3).train(), torch.randn(2, 3, 32, 32)),
}


@pytest.mark.parametrize("mode", ["reversible", "exact", "stored"])
@pytest.mark.parametrize("name", LEAKS)
def test_a_forward_pass_whose_result_is_dropped_leaves_no_memory(name: str, mode: str) -> None:
    """At once: the garbage collector has nothing to do. It could not see through the graph's side of a cycle either."""
    model, x = LEAKS[name]()
    set_exact(set_reversible(model, mode != "stored"), mode == "exact")
    gc.disable()
    try:
        with Allocations() as allocations:
            outputs = model(x)
        own = [*model.parameters(), *model.buffers(), x]
        assert allocations.alive(own) > 0
        del outputs
        assert allocations.alive(own) == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("broken", ["forward", "backward"])
@pytest.mark.parametrize("reversible", [True, False])
def test_a_step_that_is_broken_off_leaves_no_memory(reversible: bool, broken: str) -> None:
    """As when memory runs out and a smaller batch is tried."""
    model, x = LEAKS["lean"]()
    set_reversible(model, reversible)
    if broken == "forward":
        hook = model.body[5].register_forward_hook(_out_of_memory)  # type: ignore[union-attr]
    else:
        hook = next(model.body[5].parameters()).register_hook(_out_of_memory)  # type: ignore[union-attr]
    with Allocations() as allocations, pytest.raises(MemoryError):
        model(x).sum().backward()
    hook.remove()
    if broken == "backward":
        model(x).sum().backward()  # torch's engine holds what an error left until the next backward pass
    own = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers(), x]
    gc.collect()  # the traceback holds the frames
    assert allocations.storages
    assert allocations.alive(own) == 0


def _out_of_memory(*_: object) -> None:
    raise MemoryError
