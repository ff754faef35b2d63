"""The timm model as MMEngine's model: loss, Mixup, preprocessing, checkpoints with other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

from revbifpn import CheckpointError
from revbifpn.training.classification import ImageClassifier, ImagePreprocessor


def classifier(name: str = "test_resnet", num_classes: int = 3, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(name, num_classes, **options)


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_modes() -> None:
    model = classifier(loss=dict(loss_type="ce", smoothing=0.2)).eval()
    x, labels, indices = images(), torch.tensor([0, 1, 2, 1]), torch.arange(4)
    logits = model(x)
    assert torch.equal(logits, model.backbone(x))
    assert model(x, labels, mode="loss")["loss"].item() == pytest.approx(
        F.cross_entropy(logits, labels, label_smoothing=0.2).item(), rel=1e-6
    )
    (predicted,) = model(x, labels, indices, mode="predict")
    assert torch.equal(predicted["logits"], logits)
    assert predicted["indices"] is indices
    with pytest.raises(ValueError, match="mode must be .* got 'train'"):
        model(x, mode="train")


def test_mixup_gives_soft_targets_and_odd_batches_go_unmixed() -> None:
    model = classifier(mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0), loss=dict(loss_type="ce", smoothing=0.1)).eval()
    x, labels = images(), torch.tensor([0, 1, 2, 1])
    mixed, targets = model._mix(x.clone(), labels)
    assert targets.shape == (4, 3)
    assert torch.allclose(targets.sum(1), torch.ones(4))
    assert not torch.equal(mixed, x)
    loss = model(x[:3].clone(), labels[:3], mode="loss")["loss"]
    expected = F.cross_entropy(model.backbone(x[:3]), labels[:3], label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_preprocessor_equals_timms_transform(image_folder: Path, channels_last: bool) -> None:
    from PIL import Image

    picture = Image.open(image_folder / "val/red/0.png").convert("RGB")
    normalized = create_transform(32, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)(picture)
    raw = create_transform(32, use_prefetcher=True)(picture)
    preprocess = ImagePreprocessor(channels_last=channels_last)
    out = preprocess({"inputs": raw[None].repeat(2, 1, 1, 1), "labels": torch.tensor([0, 1])})
    torch.testing.assert_close(out["inputs"], normalized[None].repeat(2, 1, 1, 1), rtol=1e-5, atol=1e-5)
    assert out["inputs"].is_contiguous(memory_format=torch.channels_last) == channels_last


def test_random_erasing_is_for_training_alone() -> None:
    preprocess = ImagePreprocessor(random_erasing=dict(probability=1.0, mode="const"))
    data = {"inputs": torch.full((4, 3, 32, 32), 200, dtype=torch.uint8)}
    assert (preprocess(data, training=False)["inputs"] != 0).all()
    assert (preprocess(data, training=True)["inputs"] == 0).any()


def test_initialization_of_mmengine_leaves_the_weights() -> None:
    model = classifier("test_vit", model_args=dict(img_size=32))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_norm_eval_holds_statistics() -> None:
    model = classifier("revbifpn_s0", norm_eval=True).train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]), mode="loss")["loss"].backward()
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    assert model.backbone.training


class TestCheckpoint:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Weights of a 5-class model, as timm saves them."""
        torch.manual_seed(1)
        path = tmp_path / "five.pth"
        torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), path)
        return path

    def test_with_other_classes_gets_a_fresh_classifier_and_it_is_said(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        monkeypatch.setattr("revbifpn.training.classification.model.print_log", lambda message, **_: said.append(message))
        state = torch.load(path)
        model = classifier(checkpoint=str(path))
        assert f"{path} has 5 classes, the model 3: the classifier is a fresh one" in said
        for key, value in model.backbone.state_dict().items():
            assert key.startswith("fc.") or torch.equal(value, state[key])
        assert model.backbone.fc.weight.shape[0] == 3

    def test_with_other_classes_is_refused_where_it_is_to_be_evaluated(self, path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"five.pth has 5 classes, the model 3. Nothing was loaded"):
            classifier(checkpoint=str(path), remake_classifier=False)

    def test_with_the_same_classes_is_loaded_whole(self, path: Path, tmp_path: Path) -> None:
        model = classifier(num_classes=5, checkpoint=str(path))
        state = torch.load(path)
        assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())
        # and so is what MMEngine saves of this model
        torch.save({"meta": {}, "state_dict": model.state_dict()}, tmp_path / "epoch_1.pth")
        again = classifier(num_classes=5, checkpoint=str(tmp_path / "epoch_1.pth"))
        assert all(torch.equal(value, state[key]) for key, value in again.backbone.state_dict().items())

    def test_of_rgb_images_is_taken_for_any_image_channels(self, tmp_path: Path) -> None:
        path = tmp_path / "rgb.pth"
        torch.save(timm.create_model("revbifpn_s0", num_classes=3).state_dict(), path)
        options = dict(checkpoint=str(path), data_preprocessor=dict(type="ImagePreprocessor", mean=[0.5] * 12, std=[0.2] * 12))
        model = classifier("revbifpn_s0", model_args=dict(in_chans=12), **options).eval()
        x = images()
        with torch.no_grad():  # channels are summed in another order
            torch.testing.assert_close(
                model(x.repeat(1, 4, 1, 1)),
                classifier("revbifpn_s0", checkpoint=str(path)).eval()(x),
                rtol=1e-4,
                atol=1e-5,
            )

    def test_with_averaged_weights_and_with_values_that_are_not_finite(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        monkeypatch.setattr("revbifpn.training.classification.model.print_log", lambda message, **_: said.append(message))
        averaged = torch.load(path)
        raw = {key: value + 1 for key, value in averaged.items()}
        raw["fc.bias"][0] = float("nan")
        both = tmp_path / "last.pth"
        torch.save({"state_dict": raw, "state_dict_ema": averaged}, both)
        model = classifier(num_classes=5, checkpoint=str(both))
        assert all(torch.equal(value, averaged[key]) for key, value in model.backbone.state_dict().items())
        assert f"tensors from {both} (its EMA weights, ema=False takes the raw ones)" in said[-1]
        with pytest.raises(CheckpointError, match="last.pth has values that are NaN or infinite, in 1 tensors: fc.bias"):
            classifier(num_classes=5, checkpoint=str(both), ema=False)
        model = classifier(num_classes=5, checkpoint=str(both), ema=False, allow_non_finite=True)
        assert torch.equal(model.backbone.fc.weight, raw["fc.weight"])

    def test_of_another_model_is_refused(self, path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"five.pth does not fit the model.*Nothing was loaded"):
            classifier("test_vit", model_args=dict(img_size=32), checkpoint=str(path))


def test_is_registered_at_the_root() -> None:
    assert MODELS.get("ImageClassifier") is ImageClassifier
