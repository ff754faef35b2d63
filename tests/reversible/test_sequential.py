"""A ReversibleSequential as a list of layers, and what it refuses between them and inside their edges."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from revbifpn.reversible import ExactReversalWarning, ReversibleSequential, RevSilo, set_reversible

from .common import Edge, assert_same_gradients, gradients, loss_of, pyramid, silo, streams


def test_a_slice_has_the_layers_and_the_settings() -> None:
    model = ReversibleSequential(*pyramid(), reversible=False, exact=True, exact_bits=10)
    part = model[1:]
    assert isinstance(part, ReversibleSequential)
    assert list(part) == list(model)[1:]
    assert (part.reversible, part.exact, part.bits) == (False, True, 10)


def test_layers_that_are_added_get_the_settings() -> None:
    model = ReversibleSequential(exact=True, exact_bits=10)
    first, second, third = (silo(3, 3) for _ in range(3))
    model.append(third)
    model.insert(0, first)
    model.insert(1, silo(3, 3))
    model[1] = second
    assert list(model) == [first, second, third]
    assert [layer.exact_bits for layer in model] == [10, 10, 10]


CHANGES = {  # each puts a module into a chain, with the number that its layer would have
    "append": (lambda chain, m: chain.append(m), 6),
    "insert": (lambda chain, m: chain.insert(1, m), 1),
    "item assignment": (lambda chain, m: chain.__setitem__(1, m), 1),
    "extend": (lambda chain, m: chain.extend([silo(3, 3), m]), 7),
    "add": (lambda chain, m: chain + nn.Sequential(silo(3, 3), m), 7),
    "add in place": (lambda chain, m: chain.__iadd__([m]), 6),
    "add_module": (lambda chain, m: chain.add_module("6", m), 6),
    "attribute": (lambda chain, m: setattr(chain, "6", m), 6),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_reversible_layer_is_refused_with_its_place(change: str) -> None:
    model = pyramid()
    before = list(model)
    call, index = CHANGES[change]
    with pytest.raises(TypeError, match=f"layer {index} is ReLU, not a ReversibleLayer"):
        call(model, nn.ReLU())
    assert list(model) == before


@pytest.mark.parametrize("change", CHANGES)
def test_what_comes_in_gets_the_settings(change: str) -> None:
    model = pyramid(exact=True)
    layer = silo(3, 3)
    call, index = CHANGES[change]
    result = call(model, layer)
    chain = result if change == "add" else model
    assert chain[index] is layer
    assert layer.exact_bits == 13


def test_chains_are_added_and_repeated() -> None:
    first, second = ReversibleSequential(silo(3, 3), exact=True, exact_bits=10), pyramid()
    both = first + second
    assert isinstance(both, ReversibleSequential)
    assert list(both) == [*first, *second]
    assert (both.exact, both.bits, len(first)) == (True, 10, 1)
    twice = first * 2
    assert isinstance(twice, ReversibleSequential)
    assert list(twice) == [first[0], first[0]]
    assert twice.bits == 10
    assert [len(s) for s in twice(*streams(3))] == [2, 2, 2]


def test_an_edge_that_takes_anothers_place_is_the_one_that_runs() -> None:
    """The plan of the layer's last pass knew the old edge."""
    model = ReversibleSequential(silo(2, 2), silo(2, 2)).double()
    x = streams(2, dtype=torch.float64)
    gradients(model, x)
    old = model[1].down["0"]["1"]
    model[1].down["0"]["1"] = Edge(0, 1).double()
    del model[0].up["1"]
    ours = gradients(model, x)
    theirs = gradients(set_reversible(copy.deepcopy(model), False), x)
    assert_same_gradients([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], rtol=1e-10, atol=1e-10)
    assert all(grad is not None for grad in ours[1])
    assert all(param.grad is not None for param in old.parameters())  # of the first pass


def test_streams_that_a_hook_changes_between_layers_are_refused() -> None:
    model = pyramid()
    model[1].register_forward_pre_hook(lambda layer, streams: tuple(stream * 2 for stream in streams))
    with pytest.raises(RuntimeError, match=r"stream 0 is another tensor when it comes to reversible layer 1 \(RevSilo\)"):
        model(*streams())


def test_layers_have_their_numbers_though_frozen_ones_are_passed_over() -> None:
    model = ReversibleSequential(silo(3, 3).requires_grad_(False), silo(3, 3), silo(3, 3), exact=True)
    hook = model[2].register_forward_pre_hook(lambda layer, streams: tuple(stream * 2 for stream in streams))
    with pytest.raises(RuntimeError, match=r"when it comes to reversible layer 2 \(RevSilo\)"):
        model(*streams(3))
    hook.remove()
    model[2].down["0"]["1"] = nn.Conv2d(4, 5, 1)
    with pytest.raises(ValueError, match=r"layer 2 \(RevSilo\): edge down\[0\]\[1\] returned shape"):
        model(*streams(3))
    del model[2]
    with pytest.warns(ExactReversalWarning, match=r"stream 0 after reversible layer 1 \(RevSilo\)"):
        sum(s.sum() for s in model(*(s + 3000 for s in streams(3)))).backward()
    taken: list[Tensor] = []
    model.append(silo(3, 3))
    model[1].register_forward_hook(lambda layer, args, out: taken.extend(out))
    model(*streams(3))
    with pytest.raises(RuntimeError, match="reached reversible layer 1 but not the layer after it"):
        taken[0].sum().backward()


# Edges that are no functions of their input, or of no shape that fits


class Fickle(nn.Module):
    """A convolution whose output, or input, ``change`` meets in the first run or in the second."""

    def __init__(self, change: Callable[[Tensor, Tensor], object], run: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.change, self.run, self.runs = change, run, 0

    def forward(self, x: Tensor) -> object:
        self.runs += 1
        return self.change(x, self.conv(x)) if self.runs == self.run else self.conv(x)


FORWARD = {
    "input in place": (
        lambda x, y: x.mul_(2),
        RuntimeError,
        r"Fickle changes its input in place, so the input cannot be rebuilt: let it work on a copy",
    ),
    "no tensor": (lambda x, y: [y], TypeError, r"Fickle returned list, but an edge has to return one tensor"),
    "None": (lambda x, y: None, TypeError, r"Fickle returned NoneType, but an edge has to return one tensor"),
    "shape": (
        lambda x, y: y[..., :2],
        ValueError,
        r"edge down\[0\]\[1\] returned shape \(2, 4, 8, 2\), its target stream has",
    ),
    "device": (lambda x, y: y.to("meta"), ValueError, r"edge down\[0\]\[1\] returned a tensor on meta, .* is on cpu: move"),
}
BACKWARD = {
    "no tensor": (lambda x, y: (y, y), TypeError, r"Fickle returned tuple, but an edge has to return one tensor"),
    "shape": (lambda x, y: y[..., :2], RuntimeError, r"edge down\[0\]\[1\] of layer 1 .* returned \(2, 4, 8, 2\)"),
    "batch": (lambda x, y: y[:1], RuntimeError, r"edge down\[0\]\[1\] of layer 1 .* returned \(1, 4, 8, 8\)"),
    "dtype": (lambda x, y: y.double(), RuntimeError, r"returned .*float64 on cpu in the backward pass and .*float32"),
    "device": (
        lambda x, y: y.to("meta"),
        RuntimeError,
        r"returned .* on meta in the backward pass and .* on cpu in the forward",
    ),
}


def chain_with(edge: nn.Module) -> ReversibleSequential:
    def plain() -> nn.Module:
        return nn.Conv2d(4, 4, 1)

    return ReversibleSequential(RevSilo({(0, 1): plain()}, {(1, 0): plain()}), RevSilo({(0, 1): edge}, {(1, 0): plain()}))


@pytest.mark.parametrize("what", FORWARD)
def test_edges_are_refused_in_the_forward_pass(what: str) -> None:
    change, error, message = FORWARD[what]
    x = streams()[0]
    with pytest.raises(error, match=message) as raised:
        chain_with(Fickle(change, run=1))(x, x.clone())
    assert "layer 1 (RevSilo)" in str(raised.value) + "".join(getattr(raised.value, "__notes__", []))
    assert "edge down[0][1]" in str(raised.value) + "".join(getattr(raised.value, "__notes__", []))


@pytest.mark.parametrize("what", BACKWARD)
def test_edges_are_refused_in_the_backward_pass(what: str) -> None:
    change, error, message = BACKWARD[what]
    x = streams()[0]
    model = chain_with(Fickle(change, run=2))
    loss = loss_of(model(x, x.clone()))
    with pytest.raises(error, match=message) as raised:
        loss.backward()
    text = str(raised.value) + "".join(raised.value.__notes__)
    assert "edge down[0][1] of layer 1 (RevSilo)" in text
    if error is RuntimeError:
        assert "Take out what differs between two calls, or set reversible=False" in text


@pytest.mark.parametrize("first", [True, False])
def test_an_edge_that_changes_its_input_in_the_backward_pass_is_refused(first: bool) -> None:
    """Whether the input is a leaf of the replay's graph, or an image that needs no gradient."""
    x = streams()[0]
    edge = Fickle(lambda x, y: x.mul_(2) + y, run=2)
    model = chain_with(edge)[1:] if first else chain_with(edge)
    loss = loss_of(model(x, x.clone()))
    with pytest.raises(
        RuntimeError, match=r"changes its input in place|leaf Variable that requires grad .* in-place"
    ) as raised:
        loss.backward()
    assert "edge down[0][1] of layer" in "".join(raised.value.__notes__)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("reversible", [True, False])
def test_an_edge_that_creates_a_stream_returns_a_tensor_too(reversible: bool, grad: bool) -> None:
    edge = Fickle(lambda x, y: [y], run=1)
    model = ReversibleSequential(RevSilo({(0, 1): edge}, {}, num_inputs=1), reversible=reversible)
    with torch.set_grad_enabled(grad), pytest.raises(TypeError, match="returned list, but an edge has to return one tensor"):
        model(*streams())
