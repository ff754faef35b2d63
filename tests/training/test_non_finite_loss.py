"""Losses that are no numbers, with and without gradient accumulation: what reaches the weights."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn

from revbifpn.training.hooks import NonFiniteLossError, NonFiniteLossHook
from revbifpn.training.runner import build_runner

COUNT, STEPS = 3, 8  # two updates of three batches, and a last one of two
MAX_NORM = 0.5
# Sums of the same float64 numbers in another order: some 1e-16. A batch that is lost or weighted wrongly changes 1e-2.
TOLERANCE = 1e-13


class Regression(BaseModel):
    """One weight vector; its loss and its gradient are exact enough to be compared in any order of summation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 4, dtype=torch.float64))

    def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        return {"loss": (inputs @ self.weight - 1).square().mean()}


def batches(steps: int = STEPS, seed: int = 0) -> Tensor:
    """(steps, 2 images, 4)."""
    return torch.randn(steps, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


#: What a batch is multiplied by for its loss to be NaN or infinite.
SPOILS = {"nan": float("nan"), "inf": 1e200}


def spoil(inputs: Tensor, finite: Sequence[bool], loss: str = "nan") -> Tensor:
    return torch.stack([batch if good else batch * SPOILS[loss] for batch, good in zip(inputs, finite, strict=True)])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: Any, wrapper: OptimWrapper, inputs: Tensor) -> None:
    """As MMEngine's loops do, with the hook."""
    hook = NonFiniteLossHook(action="skip")
    runner: Any = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0, logger=logging.getLogger("test"))
    wrapper.initialize_count_status(model, 0, len(inputs))
    hook.before_train(runner)
    for runner.iter, batch in enumerate(inputs):
        hook.before_train_iter(runner, runner.iter)
        model.train_step({"inputs": batch}, wrapper)


def expected(inputs: Tensor, finite: Sequence[bool], clip: bool = False) -> Tensor:
    """The weights after updates with the mean gradient of each update's finite batches, one batch after the other."""
    model = Regression()
    optimizer = sgd(model)
    for begin in range(0, len(inputs), COUNT):
        good = [i for i in range(begin, min(begin + COUNT, len(inputs))) if finite[i]]
        if not good:
            continue
        gradients = [torch.autograd.grad(model(inputs[i])["loss"], model.weight)[0] for i in good]
        model.weight.grad = torch.stack(gradients).mean(0)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
    return model.weight.detach()


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AmpOptimWrapper]:
    """MMEngine's wrapper with loss scaling, and torch's scaler for a CPU in it: by itself the wrapper insists on a GPU."""
    place = "mmengine.optim.optimizer.amp_optimizer_wrapper"
    monkeypatch.setattr(f"{place}.is_cuda_available", lambda: True)
    monkeypatch.setattr(f"{place}.GradScaler", partial(torch.amp.GradScaler, "cpu"))
    return AmpOptimWrapper


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("kind", ["plain", "scaled"])
def test_every_pattern_of_skipped_batches(kind: str, clip: bool, scaled: Callable[..., AmpOptimWrapper]) -> None:
    """An update takes the mean gradient of its finite batches, wherever the others stand; none, if there is no such batch."""
    make: Callable[..., OptimWrapper] = scaled if kind == "scaled" else OptimWrapper
    inputs = batches()
    for finite in itertools.product((True, False), repeat=STEPS):
        model = Regression()
        wrapper = make(optimizer=sgd(model), accumulative_counts=COUNT, clip_grad=dict(max_norm=MAX_NORM) if clip else None)
        train(model, wrapper, spoil(inputs, finite))
        torch.testing.assert_close(model.weight.detach(), expected(inputs, finite, clip), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("loss", SPOILS)
def test_without_accumulation_a_skipped_step_is_none(loss: str, caplog: pytest.LogCaptureFixture) -> None:
    inputs = batches()
    finite = [step not in (2, 5) for step in range(STEPS)]
    with_bad, without = Regression(), Regression()
    train(with_bad, OptimWrapper(sgd(with_bad)), spoil(inputs, finite, loss))
    train(without, OptimWrapper(sgd(without)), inputs[torch.tensor(finite)])
    assert torch.equal(with_bad.weight, without.weight)
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(":")[0] for text in said] == [f"loss is {loss} at step {step}" for step in (3, 6)]


def test_accumulation_in_a_wrapper_whose_gradients_are_out_of_reach_is_refused() -> None:
    @MODEL_WRAPPERS.register_module(force=True)
    class Sharded(nn.Module):
        pass

    model = Sharded()
    assert is_model_wrapper(model)
    runner: Any = SimpleNamespace(model=model, optim_wrapper=OptimWrapper(sgd(Regression()), accumulative_counts=2))
    with pytest.raises(ValueError, match="works in one process and with DDP, not with Sharded: use action 'stop', or accumul"):
        NonFiniteLossHook("skip").before_train(runner)


def state_of(runner: Runner) -> dict[str, Any]:
    """A copy of weights, statistics and the optimizer's state."""
    optimizer: Any = runner.optim_wrapper.optimizer
    return copy.deepcopy(
        {
            "weights": dict(runner.model.named_parameters()),
            "statistics": dict(runner.model.named_buffers()),
            "optimizer": optimizer.state_dict()["state"],
        }
    )


class States(Hook):
    """Keeps the state before each step and at the end of the training."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.states.append(state_of(runner))

    def after_train(self, runner: Runner) -> None:
        self.states.append(state_of(runner))


def same(ours: Any, theirs: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(value, theirs[key]) for key, value in ours.items())
    return torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def runner_with_bad_step(config: Path, work_dir: Path, action: str, bad_steps: tuple[int, ...]) -> tuple[Runner, States]:
    """A Runner whose images are NaN at some steps, and the states between its steps."""
    cfg = Config.fromfile(config)
    cfg.launcher, cfg.work_dir = "none", str(work_dir)
    cfg.train_cfg.update(max_iters=4, val_interval=100)
    cfg.custom_hooks = [dict(type="NonFiniteLossHook", action=action, max_skips=2)]
    runner = build_runner(cfg)
    preprocess, calls = runner.model.data_preprocessor.forward, []

    def spoiled(*args: object, **kwargs: object) -> object:
        data = preprocess(*args, **kwargs)
        calls.append(1)
        if len(calls) in bad_steps:
            data["inputs"] = data["inputs"] * float("nan")
        return data

    runner.model.data_preprocessor.forward = spoiled
    states = States()
    runner.register_hook(states)
    return runner, states


def test_non_finite_loss_stops_with_the_step(tiny_config: Path, tmp_path: Path) -> None:
    runner, kept = runner_with_bad_step(tiny_config, tmp_path / "work", "stop", (3,))
    with pytest.raises(NonFiniteLossError, match="loss is nan at step 3: training stopped, the weights are those of the step"):
        runner.train()
    first, second, third = kept.states
    left = state_of(runner)
    for part in ("weights", "optimizer"):
        assert same(left[part], third[part])
        assert not same(third[part], second[part])
    assert not same(first["weights"], second["weights"])


def test_non_finite_loss_skips_the_step_and_nothing_else(tiny_config: Path, tmp_path: Path) -> None:
    runner, kept = runner_with_bad_step(tiny_config, tmp_path / "work", "skip", (2,))
    runner.train()
    assert len(kept.states) == 5
    for part in ("weights", "statistics", "optimizer"):
        unchanged = [same(before[part], after[part]) for before, after in itertools.pairwise(kept.states)]
        assert unchanged == [False, True, False, False], part
    assert all(tensor.isfinite().all() for tensor in runner.model.state_dict().values())
    counts = {int(b) for n, b in runner.model.backbone.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts == {3}  # four steps, one of them skipped
    (log,) = (tmp_path / "work").glob("*/*.log")
    assert "loss is nan at step 2: step skipped" in log.read_text()


def test_skipping_on_and_on_stops(tiny_config: Path, tmp_path: Path) -> None:
    runner, _ = runner_with_bad_step(tiny_config, tmp_path / "work", "skip", (1, 2, 3, 4))
    with pytest.raises(NonFiniteLossError, match="loss is nan at step 3, and 2 steps before it were skipped"):
        runner.train()


def test_unknown_action_is_named() -> None:
    with pytest.raises(ValueError, match="action must be 'stop' or 'skip', got 'ignore'"):
        NonFiniteLossHook(action="ignore")
