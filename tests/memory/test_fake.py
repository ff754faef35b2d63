"""Fake where a network computes, real where arithmetic needs values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from revbifpn.memory.fake import FakeExecution, UnsupportedOperatorError, fake_weights
from revbifpn.memory.tracker import StorageTracker


def run(function: object, *args: object) -> object:
    execution = FakeExecution()
    with StorageTracker(nn.Identity(), execution):
        return function(*execution.fake_all(args))  # type: ignore[operator]


def test_what_depends_on_no_fake_tensor_has_values() -> None:
    def step(x: Tensor, index: Tensor) -> tuple[Tensor, list[int], float]:
        positive = (index > 1).nonzero().flatten()
        return x[positive].exp(), positive.tolist(), torch.ones(3).sum().item()

    taken, positions, total = run(step, torch.zeros(4, 2), torch.tensor([0, 2, 5, 1]))  # type: ignore[misc]
    assert isinstance(taken, FakeTensor)
    assert taken.shape == (2, 2)
    assert positions == [1, 2]
    assert total == 3


def test_a_real_mask_indexes_a_fake_tensor() -> None:
    mask = torch.tensor([True, False, True])

    def step(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        taken = x[mask]
        x = x.clone()
        x[mask] = 0
        return taken, x

    taken, written = run(step, torch.zeros(3, 2), mask)  # type: ignore[misc]
    assert taken.shape == (2, 2)
    assert written.shape == (3, 2)


def test_values_of_fake_tensors_are_refused_with_the_operators_name() -> None:
    with pytest.raises(UnsupportedOperatorError, match="operator aten::_local_scalar_dense needs the values"):
        run(lambda x: x.sum().item(), torch.ones(2))
    with pytest.raises(UnsupportedOperatorError, match="operator aten::nonzero needs the values.*size of its result"):
        run(lambda x: x.nonzero(), torch.ones(2))


def test_a_real_tensor_that_takes_fake_values_is_fake_from_then_on() -> None:
    def step(x: Tensor) -> float:
        buffer = torch.zeros(2)
        buffer.copy_(x)
        return buffer.sum().item()  # would be 0.0, a wrong number

    def through_a_view(x: Tensor) -> float:
        buffer = torch.zeros(2, 2)
        before = buffer.view(-1)
        buffer[0] = x
        return before.sum().item()

    for wrong in (step, through_a_view):
        with pytest.raises(UnsupportedOperatorError, match="_local_scalar_dense"):
            run(wrong, torch.ones(2))


def test_meta_tensors_give_their_shape() -> None:
    execution = FakeExecution()
    fake = execution.fake(torch.empty(10**6, 10**6, device="meta"))
    assert fake.shape == (10**6, 10**6)
    assert fake.device == torch.device("cpu")


def test_weights_come_back_tied_and_untouched() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    model[1].weight = model[0].weight
    before = dict(model.named_parameters(remove_duplicate=False))
    with fake_weights(model, FakeExecution()):
        assert model[0].weight is model[1].weight
        assert isinstance(model[0].weight, FakeTensor)
        assert isinstance(model[2].running_mean, FakeTensor)
    assert all(before[name] is param for name, param in model.named_parameters(remove_duplicate=False))
    assert not isinstance(model[2].running_mean, FakeTensor)


def test_weights_come_back_after_an_error() -> None:
    model = nn.Linear(2, 2)
    weight = model.weight
    with pytest.raises(KeyError), fake_weights(model, FakeExecution()):
        raise KeyError("x")
    assert model.weight is weight
