"""Weights through timm: which are taken of a file, and what is refused, whichever way timm loads them."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import Tensor

from revbifpn import CheckpointError, RevBiFPN, load_checkpoint


def weights(seed: int, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return RevBiFPN("s0", **options).state_dict()


def holds(model: torch.nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def pretrained(file: Path, **options: Any) -> RevBiFPN:
    overlay = {"file": str(file), **options.pop("overlay", {})}
    return timm.create_model("revbifpn_s0", pretrained=True, pretrained_cfg_overlay=overlay, **options)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What timm's training script saves."""
    path = tmp_path_factory.mktemp("train") / "last.pth.tar"
    content = {"state_dict": weights(0), "state_dict_ema": weights(1), "args": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diverged") / "diverged.pth"
    state = weights(0)
    state["neck.0.project.norm.weight"][5] = float("nan")
    torch.save(state, path)
    return path


def test_averaged_weights_are_taken_and_the_others_offered(both: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="revbifpn"):
        model = pretrained(both)
    assert holds(model, weights(1))
    assert f"loaded {len(weights(1))} tensors from {both} (its EMA weights, ema=False takes the raw ones)" in caplog.text
    assert holds(pretrained(both, ema=False), weights(0))
    assert holds(timm.create_model("revbifpn_s0", checkpoint_path=both.as_posix()), weights(1))
    load_checkpoint(model, both, ema=False)
    assert holds(model, weights(0))


def test_weights_that_are_not_finite(diverged: Path) -> None:
    name = "neck.0.project.norm.weight"
    message = f"NaN or infinite, in 1 tensors: {name}. Nothing was loaded; allow_non_finite=True loads them"
    overlay = {"state_dict": torch.load(diverged)}
    with pytest.raises(CheckpointError, match=f"diverged.pth has values that are {message}"):
        pretrained(diverged)
    with pytest.raises(CheckpointError, match=f"state_dict has values that are {message}"):
        timm.create_model("revbifpn_s0", pretrained=True, pretrained_cfg_overlay=overlay)
    with pytest.raises(CheckpointError, match=f"the state dict has values that are {message}"):
        timm.create_model("revbifpn_s0", checkpoint_path=str(diverged))
    for num_classes in (1000, 5):
        model = pretrained(diverged, num_classes=num_classes, allow_non_finite=True)
        assert model.state_dict()[name].isnan().sum() == 1


@pytest.mark.parametrize("option", [{"ema": False}, {"allow_non_finite": True}])
def test_options_that_timms_checkpoint_path_cannot_take_are_refused(both: Path, option: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(option))}: for pretrained=True alone.*revbifpn.load_checkpoint\("):
        timm.create_model("revbifpn_s0", checkpoint_path=str(both), **option)


def test_options_that_timm_saved_with_a_model_are_no_obstacle(both: Path, tmp_path: Path) -> None:
    save_for_hf(pretrained(both, ema=False), tmp_path)
    assert holds(timm.create_model(f"local-dir:{tmp_path}", pretrained=True), weights(0))
    timm.create_model(f"local-dir:{tmp_path}")


def test_checkpoint_path_adapts_the_stem(tmp_path: Path) -> None:
    torch.save(weights(0), tmp_path / "rgb.pth")
    model = timm.create_model("revbifpn_s0", in_chans=12, checkpoint_path=str(tmp_path / "rgb.pth")).eval()
    rgb = timm.create_model("revbifpn_s0", checkpoint_path=str(tmp_path / "rgb.pth")).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():  # channels are summed in another order
        torch.testing.assert_close(model(image.repeat(1, 4, 1, 1)), rgb(image), rtol=1e-4, atol=1e-5)


def test_a_file_that_lacks_weights_is_refused_for_other_classes_too(tmp_path: Path) -> None:
    """timm loads leniently where the classes differ, and would leave the missing weights at random."""
    path = tmp_path / "part.pth"
    torch.save({key: value for key, value in weights(0).items() if not key.startswith("neck.")}, path)
    for options in ({}, {"num_classes": 5}, {"features_only": True}):
        with pytest.raises(CheckpointError, match="part.pth does not fit the model: .* missing keys: neck.0.depthwise"):
            pretrained(path, **options)


def test_other_classes_than_the_config_says_are_named(tmp_path: Path) -> None:
    path = tmp_path / "five.pth"
    torch.save(weights(0, num_classes=5), path)
    with pytest.raises(CheckpointError, match="five.pth has 5 classes, the model 1000. Nothing was loaded"):
        pretrained(path)
    assert holds(pretrained(path, overlay={"num_classes": 5}), weights(0, num_classes=5))
    assert pretrained(path, num_classes=0).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1280)


def test_features_take_a_detectors_backbone(tmp_path: Path) -> None:
    path = tmp_path / "detector.pth"
    state = {key: value for key, value in weights(0).items() if not key.startswith("head.")}
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in state.items()} | {"rpn": torch.zeros(1)}}, path)
    features = pretrained(path, features_only=True, out_indices=(0, 2))
    assert holds(features.model, state)
    assert "state_dict" not in features.pretrained_cfg | features.model.pretrained_cfg
    assert features.pretrained_cfg["file"] == str(path)
