"""A ReversibleSequential as a list of layers, and what it refuses between them and inside their edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from revbifpn.reversible import ReversibleSequential, RevSilo

from .common import pyramid, silo, streams


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


@pytest.mark.parametrize("add", ["append", "insert", "assign", "extend"])
def test_what_is_no_reversible_layer_is_refused_with_its_place(add: str) -> None:
    model = pyramid()
    before = list(model)
    how = {
        "append": (lambda m: model.append(m), len(model)),
        "insert": (lambda m: model.insert(1, m), 1),
        "assign": (lambda m: model.__setitem__(1, m), 1),
        "extend": (lambda m: model.extend([m]), len(model)),
    }
    call, index = how[add]
    with pytest.raises(TypeError, match=f"layer {index} is ReLU, not a ReversibleLayer"):
        call(nn.ReLU())
    assert list(model) == before


def test_streams_that_a_hook_changes_between_layers_are_refused() -> None:
    model = pyramid()
    model[1].register_forward_pre_hook(lambda layer, streams: tuple(stream * 2 for stream in streams))
    with pytest.raises(RuntimeError, match=r"stream 0 is another tensor when it comes to reversible layer 1 \(RevSilo\)"):
        model(*streams())


def test_an_edge_that_changes_its_input_is_refused_by_name() -> None:
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    model = ReversibleSequential(RevSilo({(0, 1): Doubles()}, {(1, 0): nn.Conv2d(3, 3, 1)}))
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(RuntimeError, match="Doubles changes its input in place") as raised:
        model(x, x.clone())
    assert "edge down[0][1]" in "".join(raised.value.__notes__)


def test_an_edge_that_returns_another_dtype_in_backward_is_refused_by_name() -> None:
    class Fickle(nn.Conv2d):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return super().forward(x).double() if self.runs > 1 else super().forward(x)

    model = ReversibleSequential(RevSilo({(0, 1): Fickle(3, 3, 1)}, {(1, 0): nn.Conv2d(3, 3, 1)}))
    x = torch.randn(1, 3, 4, 4)
    loss = sum(output.sum() for output in model(x, x.clone()))
    with pytest.raises(RuntimeError, match=r"edge down\[0\]\[1\] returned .*float64.* in the backward pass and .*float32"):
        loss.backward()  # type: ignore[union-attr]
