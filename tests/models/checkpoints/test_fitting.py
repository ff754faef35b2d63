"""From a state dict to one that a model takes as it is: what is adapted, left out, kept and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from revbifpn import CheckpointError, RevBiFPN, RevBiFPNPyramid, load_checkpoint
from revbifpn.models.blocks import MixChannels
from revbifpn.models.checkpoints import fit
from tests.oracle import reference_state_dict


@pytest.fixture(scope="module")
def model() -> RevBiFPN:
    torch.manual_seed(0)
    return RevBiFPN("s0", num_classes=3)


def spoiled(model: nn.Module, *keys: str, value: float = float("nan")) -> dict[str, Tensor]:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for key in keys:
        state[key].view(-1)[-1] = value
    return state


KEYS = ["body.1.chains.0.0.f.depthwise.norm.running_var", "neck.2.expand.conv.weight"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_name_and_allowed_on_request(
    model: RevBiFPN, tmp_path: Path, value: float
) -> None:
    path = tmp_path / "diverged.pth"
    torch.save(spoiled(model, *KEYS, value=value), path)
    other = RevBiFPN("s0", num_classes=3)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    message = rf"diverged.pth has values that are NaN or infinite, in 2 tensors: {', '.join(KEYS)}\. Nothing was loaded"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(other, path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())
    load_checkpoint(other, path, allow_non_finite=True)
    assert other.state_dict()[KEYS[0]].view(-1)[-1].isfinite().logical_not()


def test_what_is_left_out_may_be_anything(model: RevBiFPN) -> None:
    pyramid = RevBiFPNPyramid("s0")
    fitted = fit(spoiled(model, "head.fc.bias"), pyramid, "it", ignore=["head."])
    assert fitted.keys() == pyramid.state_dict().keys()
    assert set(fitted.left_out) == {key for key in model.state_dict() if key.startswith("head.")}


def test_other_classes_are_refused_or_the_model_keeps_its_own(model: RevBiFPN) -> None:
    other = RevBiFPN("s0", num_classes=5)
    with pytest.raises(CheckpointError, match="^it has 3 classes, the model 5. Nothing was loaded.$"):
        fit(model.state_dict(), other, "it", classifier=["head.fc."])
    fitted = fit(model.state_dict(), other, "it", classifier=["head.fc."], remake_classifier=True)
    assert fitted.kept == ("head.fc.weight", "head.fc.bias")
    assert fitted.classes == (3, 5)
    assert torch.equal(fitted["head.fc.bias"], other.head.fc.bias)
    same = fit(model.state_dict(), RevBiFPN("s0", num_classes=3), "it", classifier=["head.fc."], remake_classifier=True)
    assert same.kept == ()
    with pytest.raises(
        CheckpointError, match="^it does not fit the model; it is a checkpoint of RevBiFPN-s1, the model is RevBiFPN-s0"
    ):
        fit(RevBiFPN("s1", num_classes=5).state_dict(), other, "it", classifier=["head.fc."])
    assert torch.equal(same["head.fc.bias"], model.head.fc.bias)


def test_counts_of_batches_may_be_missing_and_nothing_else(model: RevBiFPN) -> None:
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    fitted = fit(state, model, "it")
    assert fitted.keys() == model.state_dict().keys()
    del state["head.final.norm.running_mean"]
    with pytest.raises(CheckpointError, match="1 missing keys: head.final.norm.running_mean"):
        fit(state, model, "it")
    assert fit(state, model, "it", optional=["head."]).keys() == fitted.keys()


class TestLoadStateDict:
    """torch's method is what timm's ``checkpoint_path`` and ``resume_checkpoint`` end in."""

    def test_strictly_nothing_is_loaded_unless_everything_fits(self, model: RevBiFPN) -> None:
        other = RevBiFPN("s0", num_classes=3)
        before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
        for state in (spoiled(model, "head.fc.bias"), {k: v for k, v in model.state_dict().items() if k != "head.fc.bias"}):
            with pytest.raises(CheckpointError, match="the state dict .*head.fc.bias"):
                other.load_state_dict(state)
            assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())
        other.load_state_dict(spoiled(model, "head.fc.bias"), allow_non_finite=True)
        assert other.head.fc.bias[-1].isnan()

    def test_stems_are_adapted(self) -> None:
        model = RevBiFPN("s0", in_chans=6)
        torch.nn.init.zeros_(model.stem.weight)
        assert str(model.load_state_dict(reference_state_dict("revbifpn_s0"))) == "<All keys matched successfully>"
        assert torch.equal(model.stem.weight, MixChannels(6, 3).weight)

    def test_leniently_it_is_torchs(self, model: RevBiFPN) -> None:
        other = RevBiFPN("s0", in_chans=6)
        stem = other.stem.weight.detach().clone().normal_()
        other.load_state_dict({"stem.weight": stem}, strict=False)
        found = other.load_state_dict({"head.fc.bias": torch.full((1000,), float("nan")), "x": stem}, strict=False)
        assert found.unexpected_keys == ["x"]
        assert torch.equal(other.stem.weight, stem)
        assert other.head.fc.bias.isnan().all()

    def test_assigning_materialises_a_model_on_the_meta_device(self, model: RevBiFPN) -> None:
        with torch.device("meta"):
            other = RevBiFPN("s0", num_classes=3)
        other.load_state_dict(model.state_dict(), assign=True)
        torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
        with torch.device("meta"):
            RevBiFPN("s0", num_classes=3).load_state_dict(RevBiFPN("s0", num_classes=3).state_dict())
