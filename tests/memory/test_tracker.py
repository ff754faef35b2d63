"""Lifetimes, phases and modules of the tensors of a step."""

from __future__ import annotations

import torch
from torch import nn

from revbifpn.memory.tracker import Allocation, StorageTracker


def live_at(tracker: StorageTracker, operator: str) -> int:
    index = next(i for i, o in enumerate(tracker.operations) if o.operator == operator)
    return sum(a.nbytes for a in tracker.allocations if a.birth <= index and (a.death is None or a.death > index))


def made_by(tracker: StorageTracker, operator: str) -> list[Allocation]:
    return [a for a in tracker.allocations if a.operator == operator]


def test_storages_are_counted_once_and_freed_when_nothing_holds_them() -> None:
    x = torch.ones(1000)
    tracker = StorageTracker(nn.Identity())
    tracker.register(x, "inputs")
    with tracker:
        y = x * 2
        view = y.view(10, 100)
        del y
        z = view.exp()  # 4 kB of x, of the first result, and its own
        del view
        z.neg_()
        w = z.sin()  # the first result is gone
    assert [a.nbytes for a in tracker.allocations] == [4000, 4000, 4000, 4000]
    assert live_at(tracker, "exp") == 12_000
    assert live_at(tracker, "sin") == 12_000
    assert made_by(tracker, "view") == made_by(tracker, "neg_") == []
    assert w.shape == (10, 100)


def test_modules_are_named_in_forward_and_in_backward() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    tracker = StorageTracker(model)
    with tracker:
        with tracker.during("forward"):
            loss = model(torch.ones(3, 4)).sum()
        with tracker.during("backward"):
            loss.backward()
    assert {o.module for o in tracker.operations if o.operator == "addmm"} == {"0", "1.1"}
    assert {(o.module, o.phase) for o in tracker.operations if o.operator == "threshold_backward"} == {("1.0", "backward")}
    assert {o.module for o in tracker.operations if o.operator == "mm"} == {"0", "1.1"}


def test_a_failing_module_leaves_the_names_right() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("no")

    model = nn.ModuleDict({"fails": Fails(), "works": nn.Linear(2, 2)})
    tracker = StorageTracker(model)
    with tracker:
        try:
            model["fails"](torch.ones(1, 2))
        except KeyError:
            model["works"](torch.ones(1, 2))
    assert {o.module for o in tracker.operations if o.operator == "addmm"} == {"works"}


def test_granularity_rounds_up() -> None:
    tracker = StorageTracker(nn.Identity(), granularity=512)
    with tracker:
        kept = torch.ones(3) + 1
    assert {a.nbytes for a in tracker.allocations} == {512}
    assert kept.sum() == 6


def test_hooks_are_gone_afterwards() -> None:
    model = nn.Linear(2, 2)
    tracker = StorageTracker(model)
    with tracker:
        model(torch.ones(1, 2))
    count = len(tracker.operations)
    model(torch.ones(1, 2))
    assert len(tracker.operations) == count
    assert not torch.nn.modules.module._global_forward_pre_hooks
