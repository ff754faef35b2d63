"""Models as things that are copied, pickled, averaged and saved, in every mode."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from revbifpn import RevBiFPN, load_checkpoint, set_exact, set_reversible
from tests.oracle import image

MODES = {
    "reversible": {"reversible": True},
    "exact": {"reversible": True, "exact": True},
    "stored": {"reversible": False},
}


def make(mode: str, seed: int = 0) -> RevBiFPN:
    torch.manual_seed(seed)
    return RevBiFPN("s0", num_classes=4, **MODES[mode])


def step(model: nn.Module) -> tuple[float, list[Tensor]]:
    """One training step's loss and gradients."""
    model.train()
    model.zero_grad()
    torch.manual_seed(7)
    loss = F.cross_entropy(model(image(2, 64, 64)), torch.tensor([1, 3]))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same_step(a: nn.Module, b: nn.Module) -> None:
    (loss_a, grads_a), (loss_b, grads_b) = step(a), step(b)
    assert loss_a == loss_b
    assert all(torch.equal(x, y) for x, y in zip(grads_a, grads_b, strict=True))


def assert_mean(ema: nn.Module, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """With a decay of one half; float32 rounding."""
    for key, value in ema.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (before[key] + after[key]) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_pickling_and_deepcopy_keep_weights_and_mode(mode: str) -> None:
    model = make(mode)
    step(model)  # also after a pass has been recorded and replayed
    for clone in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert clone.reversible == model.reversible
        assert clone.body.exact_bits == model.body.exact_bits
        assert clone.body[1].exact_bits == model.body.exact_bits
        assert_same_step(copy.deepcopy(model), clone)


def test_deepcopy_between_forward_and_backward() -> None:
    model = make("reversible").train()
    loss = model(image(2, 64, 64)).sum()
    clone = copy.deepcopy(model)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in clone.parameters())


@pytest.mark.parametrize("source", MODES)
@pytest.mark.parametrize("target", MODES)
def test_state_dicts_pass_between_modes(source: str, target: str) -> None:
    a, b = make(source, seed=1), make(target, seed=2)
    assert b.load_state_dict(a.state_dict(), strict=True)
    set_exact(set_reversible(a, MODES[target]["reversible"]), MODES[target].get("exact", False))
    assert_same_step(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_safetensors(mode: str, tmp_path: Path) -> None:
    model, other = make(mode, seed=1), make(mode, seed=2)
    step(model)
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    assert load_file(path).keys() == model.state_dict().keys()
    load_checkpoint(other, path)
    assert_same_step(model, other)


@pytest.mark.parametrize("mode", MODES)
def test_timms_ema(mode: str) -> None:
    model = make(mode)
    ema = ModelEmaV3(model, decay=0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(model)
    optimizer.step()
    ema.update(model)
    assert_mean(ema.module, before, model.state_dict())
    with torch.no_grad():
        assert ema.module.eval()(image(1, 64, 64)).shape == (1, 4)


@pytest.mark.parametrize("mode", MODES)
def test_mmengines_ema(mode: str) -> None:
    from mmengine.model import ExponentialMovingAverage

    model = make(mode)
    ema = ExponentialMovingAverage(model, momentum=0.5, update_buffers=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ema.update_parameters(model)  # the first update copies
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(model)
    optimizer.step()
    ema.update_parameters(model)
    assert_mean(ema.module, before, model.state_dict())


def test_no_mode_leaves_traces_in_the_state_dict() -> None:
    assert make("reversible").state_dict().keys() == make("exact").state_dict().keys() == make("stored").state_dict().keys()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["neck.1", "head.steps.0", "body.3", "body.4.down.0.1", "body.3.chains.0.0.f"])
def test_a_module_that_takes_anothers_place_is_the_one_that_runs(mode: str, name: str) -> None:
    """A step with the old one left its plan behind."""
    model = make(mode)
    step(model)
    old = model.get_submodule(name)
    model.set_submodule(name, copy.deepcopy(old))
    with torch.no_grad():
        for param in model.get_submodule(name).parameters():
            param.mul_(1.25)
    assert_same_step(model, copy.deepcopy(model))
    old.zero_grad()
    step(model)
    assert all(param.grad is not None for param in model.parameters())
    assert all(param.grad is None for param in old.parameters())
