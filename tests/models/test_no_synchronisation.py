"""A training step reads no value from the device: every mode takes one on fake CUDA tensors, which have no values to read.

Whatever makes the host wait for a GPU (``.item()``, ``nonzero()``, a copy between host and device) fails here without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from revbifpn.models import RevBiFPN
from revbifpn.reversible import exact, set_exact, set_reversible
from tests.networks import SMALL

_aten = torch.ops.aten
_READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_COPIES = (_aten._to_copy.default, _aten.copy_.default)


class Synchronises(AssertionError):
    """An operator made the host wait for the device."""


class NoSynchronisation(TorchDispatchMode):
    """Fails on operators that read a CUDA tensor's values, and on copies between host and device that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self.host_copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operators += 1
        if any(tag in func.tags for tag in _READS) and "cuda" in _devices((args, kwargs)):
            raise Synchronises(f"{func} reads values")
        result = func(*args, **kwargs)
        if func in _COPIES and len(_devices((args, result))) > 1:
            if not (kwargs.get("non_blocking") or (func is _aten.copy_.default and args[2:] == (True,))):
                raise Synchronises(f"{func} copies between host and device")
            self.host_copies += 1
        return result


def _devices(value: Any) -> set[str]:
    return {tensor.device.type for tensor in tree_leaves(value) if isinstance(tensor, Tensor)}


@contextmanager
def cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """``torch.autocast("cuda", dtype)``, which switches itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def backward(loss: Tensor) -> None:
    """``loss.backward()``. Torch's engine wants a real CUDA device for its nodes' streams; without one, they run here."""
    if torch.cuda.is_available():
        loss.backward()
        return
    assert loss.grad_fn is not None
    waiting: Counter[Any] = Counter()  # how many gradients of a node's outputs are still to come
    seen, stack = {loss.grad_fn}, [loss.grad_fn]
    while stack:
        for node, _ in stack.pop().next_functions:
            waiting[node] += node is not None
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    grads: dict[Any, list[Any]] = {loss.grad_fn: [torch.ones_like(loss)]}
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            (*given,) = grads.pop(node)
            if hasattr(node, "variable"):
                node.variable.grad = given[0] if node.variable.grad is None else node.variable.grad + given[0]
                continue
            for (below, index), grad in _gradients(node, given):
                sums = grads.setdefault(below, [None] * len(below._input_metadata))
                if grad is not None:
                    expected = below._input_metadata[index]
                    grad = grad.sum_to_size(tuple(expected.shape)).to(expected.dtype)
                sums[index] = grad if sums[index] is None else sums[index] if grad is None else sums[index] + grad
                waiting[below] -= 1
                if not waiting[below]:
                    ready.append(below)


def _gradients(node: Any, given: list[Any]) -> Iterator[tuple[tuple[Any, int], Any]]:
    """Where each gradient goes that a node computes: ((node, number of its output), gradient)."""
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    if isinstance(node, BackwardCFunction):  # returns something for every argument of its forward
        found = [grad for grad, need in zip(node.apply(*given), node.needs_input_grad, strict=True) if need]
        return zip(edges, found, strict=True)
    results = node(*given)
    found = list(results) if isinstance(results, tuple) else [results]
    return ((edge, grad) for edge, grad in zip(node.next_functions, found, strict=False) if edge[0] is not None)


def step(
    change: Callable[[nn.Module], object] = lambda model: None,
    autocast: torch.dtype | None = None,
    layout: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
    steps: int = 1,
) -> NoSynchronisation:
    """Forward, cross entropy, backward and optimizer of a small S0, dropout and stochastic depth included.

    Args:
        change: what is done to the model before.
        autocast: what autocast computes in, if it is on.
        layout, dtype: of the images, and the dtype of the model.
    """
    with FakeTensorMode(), torch.device("cuda"), default_dtype(dtype):
        model = RevBiFPN(SMALL, num_classes=10, drop_path_rate=0.2, drop_rate=0.2).train()
        change(model)
        images = torch.empty(2, 3, 64, 64).contiguous(memory_format=layout)
        labels = torch.empty(2, dtype=torch.long)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(steps):
            with NoSynchronisation() as guard:
                with cuda_autocast(autocast) if autocast else nullcontext():
                    loss = F.cross_entropy(model(images), labels)
                backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        assert loss.device.type == "cuda"
        assert len(optimizer.state) == len(list(model.parameters()))  # every parameter had a gradient
        return guard


MODES: dict[str, dict[str, Any]] = {
    "reversible": {"change": lambda model: set_exact(model, False)},
    "exact": {"change": set_exact},
    "auto": {},
    "auto under bf16 autocast": {"autocast": torch.bfloat16},
    "auto under fp16 autocast": {"autocast": torch.float16},
    "auto, bfloat16 model": {"dtype": torch.bfloat16},
    "stored": {"change": lambda model: set_reversible(model, False)},
    "stored under bf16 autocast": {"change": lambda model: set_reversible(model, False), "autocast": torch.bfloat16},
    "channels_last": {"layout": torch.channels_last},
    "norms in eval mode": {"change": lambda model: model.eval()},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_training_step_reads_no_value(mode: str) -> None:
    assert step(**MODES[mode]).operators > 1000


class _Event:
    """An event of a stream that has not come so far."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return False


@pytest.mark.parametrize("capturing", [False, True])
def test_exact_modes_checks_are_copied_without_waiting(monkeypatch: pytest.MonkeyPatch, capturing: bool) -> None:
    """Their verdict goes to pinned memory while the step goes on, and is read when it has arrived.

    In a CUDA graph nothing would read it, so nothing is copied.
    """
    monkeypatch.setattr(exact, "is_fake", lambda tensor: False)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    guard = step(set_exact, steps=2)
    assert guard.host_copies == (0 if capturing else 2)  # the range and the identity


READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x),
    "copy to the host": lambda x: torch.zeros(x.shape, device="cpu").copy_(x),
    "copy to the device": lambda x: torch.zeros(3, device="cpu").to(x.device),
}


@pytest.mark.parametrize("read", READS)
def test_the_guard_sees_what_waits(read: str) -> None:
    with FakeTensorMode(), NoSynchronisation(), pytest.raises(Synchronises):
        READS[read](torch.ones(3, 3, device="cuda"))


class Reads(nn.Module):
    """Hands its input on, and reads a number of it."""

    def forward(self, x: Tensor) -> Tensor:
        x.sum().item()
        return x


def read_in_head(model: nn.Module) -> None:
    model.head.fc = nn.Sequential(Reads(), model.head.fc)  # type: ignore[union-attr, arg-type]


def read_in_neck(model: nn.Module) -> None:
    model.neck[0] = nn.Sequential(model.neck[0], Reads())  # type: ignore[index, operator]
    set_reversible(model, False)  # the plain form asks for the device's random state, for which there has to be a device


@pytest.mark.parametrize("change", [read_in_head, read_in_neck])
def test_the_guard_sees_a_model_that_reads_a_number(change: Callable[[nn.Module], None]) -> None:
    with pytest.raises(Synchronises):
        step(change)
