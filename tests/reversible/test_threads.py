"""Threads that share a model: a forward and a backward pass each give the gradients of one thread."""

from __future__ import annotations

import copy
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from revbifpn.models import RevBiFPN
from revbifpn.reversible import ReversibleSequential, RevSilo, recompute, set_exact, set_reversible

from .common import pyramid, streams

THREADS = 2
#: The same kernels on the same values; one thread of the allocator or another gives tensors another alignment.
F64 = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def plain_chain() -> tuple[nn.Module, list[Tensor]]:
    return pyramid(norm=True).double().train(), [streams(dtype=torch.float64, seed=seed)[0] for seed in range(THREADS)]


def lean_model() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model = RevBiFPN("s0", num_classes=3, drop_path_rate=0.0, drop_rate=0.0).double().train()
    return model, [torch.randn(2, 3, 64, 64, dtype=torch.float64) for _ in range(THREADS)]


MODELS = {"plain": (plain_chain, 20), "lean": (lean_model, 1)}
MODES: dict[str, Callable[[nn.Module], object]] = {
    "reversible": lambda model: set_exact(model, False),
    "exact": set_exact,
    "stored": lambda model: set_reversible(model, False),
}


def gradients(model: nn.Module, params: list[nn.Parameter], x: Tensor) -> tuple[Tensor, ...]:
    outputs = model(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum(((i + 1) * output.sin().sum() for i, output in enumerate(outputs)), torch.zeros(()))
    return torch.autograd.grad(loss, params)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_threads_get_the_gradients_of_one(name: str, mode: str) -> None:
    make, repetitions = MODELS[name]
    model, inputs = make()
    MODES[mode](model)
    params = list(model.parameters())
    single = copy.deepcopy(model)
    expected = [gradients(single, list(single.parameters()), x) for x in inputs]
    start = threading.Barrier(THREADS)

    def work(x: Tensor) -> list[tuple[Tensor, ...]]:
        start.wait(timeout=30)
        return [gradients(model, params, x) for _ in range(repetitions)]

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(work, inputs))
    for of_thread, wanted in zip(found, expected, strict=True):
        for grads in of_thread:
            torch.testing.assert_close(grads, wanted, **F64)


def test_evaluation_while_another_thread_trains() -> None:
    """On one model, with norms in eval mode; each gets what it gets alone, and what is evaluated leaves nothing behind."""
    model, inputs = lean_model()
    model.eval()
    set_exact(model, False)
    params = list(model.parameters())
    with torch.no_grad():
        wanted = model(inputs[1])
    expected = gradients(model, params, inputs[0])
    done = threading.Event()
    outputs: list[Tensor] = []

    def evaluate() -> None:
        with torch.no_grad():
            while not done.is_set() or not outputs:
                outputs.append(model(inputs[1]))

    with ThreadPoolExecutor(1) as pool:
        evaluation = pool.submit(evaluate)
        try:
            found = [gradients(model, params, inputs[0]) for _ in range(2)]
        finally:
            done.set()
        evaluation.result(timeout=60)
    for grads in found:
        torch.testing.assert_close(grads, expected, **F64)
    for output in outputs:
        assert not output.requires_grad
        torch.testing.assert_close(output, wanted, **F64)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_exact_mode_with_more_threads_inside_of_operators(count: int) -> None:
    """Sums that threads share come out in the same order in both passes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        torch.manual_seed(0)
        model = RevBiFPN("s0", num_classes=3, drop_path_rate=0.0, drop_rate=0.0, exact=True).train()
        stored = set_reversible(copy.deepcopy(model), False)
        x = torch.randn(4, 3, 64, 64)
        for bf16 in (False, True):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    ours, theirs = (gradients(m, list(m.parameters()), x) for m in (model, stored))
            assert all(map(torch.equal, ours, theirs))
    finally:
        torch.set_num_threads(before)


class Meets(nn.Module):
    """Lets another thread go on in the middle of the replay, as the interpreter may at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.meanwhile: list[Callable[[], None]] = []
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        if self.runs == 2 and self.meanwhile:
            self.meanwhile.pop()()
        return self.conv(x)


#: (chain, streams of it) -> what the first thread differentiates, and what the other does.
PASSES: dict[str, Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]] = {
    "layer": lambda chain, x: 2 * (chain(x.clone().requires_grad_(), x.flip(0))[1],),  # type: ignore[return-value]
    "layer whose output is not used": lambda chain, x: chain(x, x.flip(0)),
    "recompute": lambda chain, x: 2 * (recompute(chain[0].down["0"]["1"], x),),  # type: ignore[index, return-value, union-attr]
}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_that_begins_in_the_middle_of_a_replay_waits_for_it(name: str) -> None:
    """A plain replay hangs stand-ins for the parameters into the modules; another pass must not take these for them."""
    torch.manual_seed(0)
    edge = Meets()
    chain = ReversibleSequential(RevSilo({(0, 1): edge}, {}))
    x = streams()[0]
    weight = edge.conv.weight

    def forward() -> Tensor:
        return PASSES[name](chain, x)[1].sin().sum()

    (expected,) = torch.autograd.grad(forward(), [weight])
    others: list[Future[Tensor]] = []
    with ThreadPoolExecutor(1) as pool:

        def meanwhile() -> None:
            others.append(pool.submit(forward))
            threading.Event().wait(0.2)  # time for the other pass to begin, if nothing stops it

        edge.runs, edge.meanwhile = 0, [meanwhile]
        PASSES[name](chain, x)[0].sin().sum().backward()
        (found,) = torch.autograd.grad(others[0].result(timeout=30), [weight])
    torch.testing.assert_close(found, expected)
