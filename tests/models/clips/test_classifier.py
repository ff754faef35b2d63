"""ClipClassifier: shapes, order of frames, chunks with exact gradients, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import revbifpn  # noqa: F401
from revbifpn import set_reversible
from revbifpn.memory import profile_training
from revbifpn.models.clips import ClipClassifier
from tests.models.clips.conftest import FRAMES, assert_close, clips, grads, tiny

OUTPUTS = {"engagement": {"levels": 4, "kind": "corn"}, "kind": 3}
LABELS = {"engagement": torch.tensor([2, -1]), "kind": torch.tensor([0, 2])}


def classifier(temporal: Any = "mean", **options: Any) -> ClipClassifier:
    arguments = {"width": 16, "depth": 1, "dropout": 0.0} if temporal == "transformer" else None
    options = {"frames": FRAMES, "temporal_args": arguments, **options}
    model = ClipClassifier(options.pop("backbone", None) or tiny(), OUTPUTS, temporal, **options)
    return model


@pytest.mark.parametrize("temporal", ["mean", "shift", "transformer"])
def test_each_head_trains_all_of_its_parameters(temporal: str) -> None:
    model = classifier(temporal)
    logits = model(clips())
    assert {name: tuple(value.shape) for name, value in logits.items()} == {"engagement": (2, 3), "kind": (2, 3)}
    sum(model.losses(logits, LABELS).values()).backward()  # type: ignore[union-attr]
    assert grads(model).keys() == dict(model.named_parameters()).keys()
    assert {name: value.dtype for name, value in model.predict(logits).items()} == dict.fromkeys(OUTPUTS, torch.int64)
    assert model.probabilities(logits)["engagement"].shape == (2, 4)


def test_any_timm_backbone_by_name() -> None:
    model = ClipClassifier("test_resnet", {"level": 4}, "transformer", frames=3, model_args={"drop_path_rate": 0.1})
    assert model(clips(2, 3))["level"].shape == (2, 4)


@pytest.mark.parametrize(("temporal", "sees_order"), [("mean", False), ("shift", True), ("transformer", True)])
def test_who_sees_the_order_of_frames(temporal: str, sees_order: bool) -> None:
    """Mean pooling returns the same for frames in another order, up to rounding."""
    model = classifier(temporal).eval()
    x = clips()
    with torch.no_grad():
        before, after = (model(order)["kind"] for order in (x, x[:, [2, 0, 3, 1]]))
    assert (float((before - after).abs().max()) > 1e-5 * float(before.abs().max())) == sees_order


@pytest.mark.parametrize("temporal", ["mean", "transformer"])
@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("chunk", [3, 4])
def test_frames_in_chunks_are_all_at_once(temporal: str, reversible: bool, chunk: int) -> None:
    """Outputs and all gradients, the pictures' too; 3 frames do not divide a clip. 1e-5: float32, other orders of sums."""
    model = classifier(temporal, norm_eval=True)
    set_reversible(model, reversible)
    found = []
    for frames in (None, chunk):
        model.frame_chunk = frames
        model.zero_grad()
        x = clips().requires_grad_()
        logits = model(x)
        sum(model.losses(logits, LABELS).values()).backward()  # type: ignore[union-attr]
        found.append(grads(model) | {"x": x.grad} | {name: value.detach() for name, value in logits.items()})
    assert_close(found[1], found[0], 1e-5)


def test_chunks_replay_random_numbers() -> None:
    """Stochastic depth: the pass that is differentiated is the one whose loss was computed."""
    model = classifier(backbone=tiny(drop_path_rate=0.5), norm_eval=True, frame_chunk=2).double()
    x = clips().double()
    weight = next(p for n, p in model.named_parameters() if n.endswith("project.conv.weight"))

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        loss: torch.Tensor = model.output("kind").fc(model.forward_features(x)).square().sum()
        return loss

    loss().backward()
    direction = weight.grad / weight.grad.norm()
    with torch.no_grad():
        step = 1e-4
        weight += step * direction
        above = float(loss())
        weight -= 2 * step * direction
        below = float(loss())
    assert (above - below) / (2 * step) == pytest.approx(float(weight.grad.norm()), rel=1e-4)


def test_memory_does_not_grow_with_frames_in_chunks() -> None:
    """A step of 4 and of 12 frames, without the pictures: in chunks of 2 it grows by pooled features alone.

    The backbone is a small one that stores its activations: with RevBiFPN the prediction takes half a minute.
    """

    def needed(chunk: int | None, frames: int) -> float:
        model = ClipClassifier("test_resnet", {"kind": 3}, frames=frames, norm_eval=True, frame_chunk=chunk)
        images = clips(1, frames, 96).to("meta")
        report = profile_training(model, images, loss=lambda logits: logits["kind"].mean(), device="cuda")
        return report.peak - report.categories["inputs"]

    assert needed(None, 12) > 2 * needed(None, 4)
    assert needed(2, 12) < 1.01 * needed(2, 4)


def test_batch_norm_in_training_mode_refuses_chunks() -> None:
    """Its statistics are over all frames: chunks would train another model. With the right statistics it is taken."""
    with pytest.raises(ValueError, match="batch norm in training mode .* set norm_eval=True"):
        classifier(frame_chunk=2)
    model = classifier(frame_chunk=2, norm_eval=True)
    model(clips())
    for module in model.modules():
        module.training = True  # somebody switches the norms on behind its back
    with pytest.raises(ValueError, match="batch norm in training mode"):
        model(clips())
    model.eval()(clips())


def test_norm_eval_holds_norms_only() -> None:
    model = classifier(norm_eval=True).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.backbone.training


def test_layer_decay_reaches_the_backbone_and_spares_the_heads() -> None:
    model = ClipClassifier("revbifpn_s0", {"kind": 3}, "transformer", frames=2)
    groups = param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay())
    scale = {id(param): group["lr_scale"] for group in groups for param in group["params"]}
    decay = {id(param): group["weight_decay"] for group in groups for param in group["params"]}
    first = next(model.backbone.body.parameters())
    assert scale[id(model.outputs["kind"].fc.weight)] == 1
    assert scale[id(first)] < scale[id(model.backbone.neck[0].depthwise.conv.weight)] < 1
    assert decay[id(model.head.positions)] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temporal": "lstm"}, "temporal must be one of mean, shift, transformer, got 'lstm'"),
        ({"temporal": "shift", "frames": None}, "made for a number of frames: give frames"),
        ({"temporal": "shift", "frame_chunk": 2, "norm_eval": True}, "needs all frames of a clip at once"),
        ({"temporal_args": {"div": 2}}, "takes no temporal_args"),
        ({"frames": 0}, "frames must be an integer >= 1, got 0"),
        ({"frame_chunk": 0, "norm_eval": True}, "frame_chunk must be an integer >= 1, got 0"),
        ({"model_args": {"drop_path_rate": 0.1}}, "leave them out with a backbone that is a module"),
    ],
)
def test_settings_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(**options)


def test_clips_and_outputs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="one output at least"):
        ClipClassifier("test_resnet", {})
    with pytest.raises(ValueError, match="cannot be called 'a.b'"):
        ClipClassifier("test_resnet", {"a.b": 2})
    with pytest.raises(ValueError, match="RevBiFPN's couplings, and ResNet has none"):
        ClipClassifier(timm.create_model("test_resnet", num_classes=0), {"a": 2}, "shift", frames=2)
    model = ClipClassifier("test_resnet", {"a": 2}, frames=4)
    for shape in ((2, 3, 32, 32), (2, 0, 3, 32, 32)):
        with pytest.raises(ValueError, match=r"expected clips of shape \(N, T, C, H, W\) with one frame at least"):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match="made for clips of 4 frames \\(frames\\), got 3"):
        model(torch.zeros(2, 3, 3, 32, 32))
