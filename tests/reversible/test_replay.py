"""The second run of an edge, in backward, is the first one again; what a step moves, it moves once."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from revbifpn.reversible import ReversibleSequential, set_reversible
from revbifpn.reversible.forms import Setting
from revbifpn.reversible.plain import PlainForm, PlainRun

from .common import Edge, assert_same_gradients, blocks, gradients, loss_of, pyramid, silo, streams

F64 = {"rtol": 1e-10, "atol": 1e-10}


def assert_like_stored(model: nn.Module, x: list[Tensor], **tolerance: float) -> None:
    stored = set_reversible(copy.deepcopy(model), False)
    ours, theirs = gradients(model, x), gradients(stored, x)
    assert_same_gradients([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], **tolerance)
    for a, b in zip(model.buffers(), stored.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_once_a_step(momentum: float | None) -> None:
    model = pyramid(norm=True).double().train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = momentum
    x = streams(dtype=torch.float64)
    assert_like_stored(model, x, **F64)
    gradients(model, x)
    assert {int(norm.num_batches_tracked) for norm in norms} == {2}


@pytest.mark.parametrize("make", [lambda c: nn.InstanceNorm2d(c, track_running_stats=True), nn.SyncBatchNorm])
def test_other_norms_move_once_a_step(make: object) -> None:
    """SyncBatchNorm outside of a process group normalises as BatchNorm; two processes are in tests/distributed."""
    model = pyramid(norm=True)
    for module in list(model.modules()):
        if isinstance(module, Edge):
            module[1] = make(module[1].num_features)  # type: ignore[operator]
    assert_like_stored(model.double().train(), streams(dtype=torch.float64), **F64)


def test_norm_in_eval_mode_uses_the_forwards_statistics() -> None:
    model = pyramid(norm=True).double().train()
    gradients(model, streams(dtype=torch.float64))
    model.eval()
    before = copy.deepcopy(list(model.buffers()))
    assert_like_stored(model, streams(dtype=torch.float64, seed=2), **F64)
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_dropout_masks_are_those_of_the_forward() -> None:
    assert_like_stored(pyramid(dropout=0.4).double().train(), streams(dtype=torch.float64), **F64)


def test_stochastic_depth_masks_are_those_of_the_forward() -> None:
    model = pyramid()
    for module in list(model.modules()):
        if isinstance(module, Edge):
            module.append(DropPath(0.5))
    assert_like_stored(model.double().train(), streams(batch=4, dtype=torch.float64), **F64)


def test_random_state_is_kept_only_where_something_is_random() -> None:
    for dropout, kept in ((0.0, 0), (0.5, 1)):
        run = PlainRun(PlainForm(Edge(0, 1, dropout=dropout).train()), Setting())
        run.record(*streams())
        assert len(run.random_states) == kept


def test_backward_leaves_the_global_random_state_alone() -> None:
    model = pyramid(dropout=0.4).train()
    loss = loss_of(model(*streams()))
    torch.manual_seed(77)
    before = torch.get_rng_state()
    loss.backward()
    assert torch.equal(before, torch.get_rng_state())


def test_two_forwards_before_one_backward() -> None:
    """Nothing of a forward pass lives on a module, so the first one's masks survive the second."""
    results = []
    for reversible in (True, False):
        model = set_reversible(pyramid(norm=True, dropout=0.4), reversible).double().train()
        torch.manual_seed(3)
        a, b = streams(dtype=torch.float64)[0].requires_grad_(), streams(dtype=torch.float64, seed=9)[0].requires_grad_()
        first, second = loss_of(model(a)), loss_of(model(b))
        (first * second).backward()
        results.append([a.grad, b.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    assert_same_gradients(results[0], results[1], **F64)


def test_one_module_twice_in_one_graph() -> None:
    results = []
    for reversible in (True, False):
        torch.manual_seed(0)
        model = ReversibleSequential(silo(3, 3, norm=True, dropout=0.2), blocks(3), reversible=reversible).double().train()
        torch.manual_seed(3)
        x = [s.requires_grad_() for s in streams(3, dtype=torch.float64)]
        loss_of(model(*model(*x))).backward()
        results.append([*(s.grad for s in x), *(p.grad for p in model.parameters()), *model.buffers()])
    assert_same_gradients(results[0], results[1], **F64)


def test_gradient_accumulation() -> None:
    results = []
    for reversible in (True, False):
        model = set_reversible(pyramid(), reversible).double()
        for seed in range(3):
            loss_of(model(*streams(dtype=torch.float64, seed=seed))).backward()
        results.append([p.grad for p in model.parameters()])
    assert_same_gradients(results[0], results[1], **F64)


def test_train_mode_of_the_forward_is_replayed() -> None:
    model = pyramid(norm=True, dropout=0.4).double().train()
    expected = gradients(copy.deepcopy(model), streams(dtype=torch.float64))
    torch.manual_seed(5)
    x = streams(dtype=torch.float64)[0].requires_grad_()
    loss = loss_of(model(x))
    model.eval()
    loss.backward()
    assert_same_gradients([x.grad, *(p.grad for p in model.parameters())], [*expected[0], *expected[1]], rtol=0, atol=0)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_replayed_with_its_dtype(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    model = pyramid()
    model[3].down["0"]["1"][0].register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype):
        outputs = model(*streams())
        assert {o.dtype for o in outputs} == {torch.float32}  # created streams too
        loss = loss_of(outputs)
    loss.backward()
    assert seen == [dtype, dtype]
    assert torch.is_autocast_cache_enabled()


def test_autocast_around_backward_does_not_change_the_replay() -> None:
    seen: list[torch.dtype] = []
    model = pyramid()
    model[3].down["0"]["1"][0].register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    loss = loss_of(model(*streams()))
    with torch.autocast("cpu", torch.bfloat16):
        loss.backward()
    assert seen == [torch.float32, torch.float32]


def test_autocasts_weight_cache_loses_no_gradient() -> None:
    """A weight cast in a forward pass without graph must not be served to a pass with one, in the same autocast region."""
    model = pyramid()
    stored = set_reversible(copy.deepcopy(model), False)
    x = streams()
    with torch.autocast("cpu", torch.bfloat16):
        model(*x)
        set_reversible(model, False)
        loss_of(model(*x)).backward()
        loss_of(stored(*x)).backward()
    grads = [p.grad for p in model.parameters()]
    assert_same_gradients(grads, [p.grad for p in stored.parameters()], rtol=0, atol=0)


class Explosive(nn.Module):
    """Fails on its n-th call."""

    def __init__(self, inner: nn.Module, fail_at: int) -> None:
        super().__init__()
        self.inner = inner
        self.calls, self.fail_at = 0, fail_at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.fail_at:
            raise ArithmeticError("boom")
        return self.inner(x)


@pytest.mark.parametrize("fail_at", [1, 2])
def test_an_exception_in_an_edge_leaves_the_model_usable(fail_at: int) -> None:
    """Call 1 is in forward, call 2 in backward."""
    model = pyramid(norm=True, dropout=0.2).double().train()
    edge = Explosive(model[3].down["0"]["1"], fail_at)
    model[3].down["0"]["1"] = edge
    with pytest.raises(ArithmeticError, match="boom"):
        gradients(model, streams(dtype=torch.float64))
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    assert all(module.running_mean is not None for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert torch.is_autocast_cache_enabled()
    edge.fail_at = -1
    assert_like_stored(model, streams(dtype=torch.float64), **F64)


def test_first_run_of_a_stateful_edge_is_replayed_from_its_old_state() -> None:
    class Counting(nn.Module):
        """Scales by a buffer that grows with every call."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(()))
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.scale += 1
            return self.conv(x) * self.scale

    from revbifpn.reversible import RevSilo

    torch.manual_seed(0)
    model = ReversibleSequential(RevSilo({(0, 1): Counting()}, {(1, 0): Counting()})).double().train()
    x = [streams(dtype=torch.float64)[0], streams(dtype=torch.float64, seed=2)[0]]
    assert_like_stored(model, x, **F64)
    assert model[0].down["0"]["1"].scale == 2


def test_stored_mode_neither_warns_nor_records(monkeypatch: pytest.MonkeyPatch) -> None:
    model = set_reversible(pyramid(norm=True).train(), False)
    monkeypatch.setattr(PlainRun, "__init__", lambda *_: pytest.fail("stored mode recorded a run"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(model(*streams())).backward()
