"""What code written for timm expects of every model: shapes, names, classifier, pooling, devices, training."""

from __future__ import annotations

import copy
import inspect

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.utils import freeze, unfreeze
from torch import Tensor, nn

from revbifpn import RevBiFPN, set_reversible
from revbifpn.models.classifier import POOLS

NAMES = [f"revbifpn_s{i}" for i in range(7)]


def meta_model(name: str, **kwargs: object) -> RevBiFPN:
    return timm.create_model(name, device="meta", dtype=torch.float32, **kwargs)


@pytest.mark.parametrize("name", timm.list_models("revbifpn_*", include_tags=True))
def test_features_and_head_have_the_shapes_of_the_config(name: str) -> None:
    model = meta_model(name).eval()
    cfg = model.pretrained_cfg
    assert model.default_cfg is cfg
    with torch.no_grad():
        features = model.forward_features(torch.empty(2, *cfg["input_size"], device="meta"))
    assert features.shape == (2, model.num_features, *cfg["pool_size"])
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (2, model.head_hidden_size)
    assert model.forward_head(features).shape == (2, cfg["num_classes"]) == (2, model.num_classes)
    for headless in (meta_model(name, num_classes=0), model):
        headless.reset_classifier(0)
        assert headless.num_classes == 0
        assert headless.forward_head(features).shape == pre_logits.shape
        headless.reset_classifier(0, "")
        assert headless.forward_head(features).shape == features.shape


def test_classifier_left_out() -> None:
    x = torch.randn(2, 3, 32, 64)
    model = timm.create_model("revbifpn_s0", num_classes=0).eval()
    assert model(x).shape == (2, 1280)
    assert timm.create_model("revbifpn_s0", num_classes=0, global_pool="").eval()(x).shape == (2, 1280, 1, 2)
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_config_names_what_is_there(name: str) -> None:
    model = meta_model(name)
    cfg = model.pretrained_cfg
    assert f"{cfg['classifier']}.weight" in model.state_dict()
    assert model.get_classifier() is model.get_submodule(model.get_classifier(name_only=True))
    assert model.get_classifier(name_only=True) == cfg["classifier"]
    assert cfg["first_conv"] == ()
    assert cfg["architecture"] == name
    assert cfg["tag"] == "cerebras_in1k"
    assert cfg["mean"] == (0.485, 0.456, 0.406)
    assert cfg["std"] == (0.229, 0.224, 0.225)
    assert cfg["crop_pct"] == 0.875
    assert cfg["license"] == "bsd-3-clause"
    assert cfg["paper_ids"] == "arXiv:2206.14098"
    assert not cfg["fixed_input_size"]
    assert model.in_chans == cfg["input_size"][0] == 3
    assert f"{name}.cerebras_in1k" in timm.list_pretrained("revbifpn_*")
    assert all(model.get_submodule(info["module"]) is not None for info in model.feature_info)


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="not_an_argument"):
        meta_model("revbifpn_s0", not_an_argument=1)
    assert inspect.signature(RevBiFPN.reset_classifier).parameters["global_pool"].default is None


def test_device_and_dtype_reach_every_tensor() -> None:
    model = timm.create_model("revbifpn_s0", in_chans=5, device="meta", dtype=torch.float64)
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
    assert {t.dtype for t in (*model.parameters(), *model.buffers())} == {torch.float64, torch.int64}
    model.eval().reset_classifier(2)
    assert model.head.fc.weight.dtype == torch.float64
    assert model.head.fc.weight.device.type == "meta"
    assert not any(m.training for m in model.modules())
    model.requires_grad_(False).reset_classifier(0, "")
    assert not any(p.requires_grad for p in model.parameters())


def test_initialisation_after_meta() -> None:
    model = timm.create_model("revbifpn_s0", num_classes=3, in_chans=6, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 99)
    model.init_weights()
    torch.manual_seed(0)
    fresh = timm.create_model("revbifpn_s0", num_classes=3, in_chans=6)
    state = model.state_dict()
    for key, value in fresh.state_dict().items():
        found = state[key]
        assert torch.isfinite(found).all(), key
        if value.numel() > 1000:
            assert found.float().std().item() == pytest.approx(value.float().std().item(), rel=0.2), key
        elif "norm" in key or key == "stem.weight":
            assert torch.equal(found, value), key


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name: str) -> None:
    """Every parameter gets a gradient; the two memory modes return the same."""
    large = name in NAMES[4:]
    model = timm.create_model(name, num_classes=42, drop_rate=0.0, drop_path_rate=0.0).train()
    x = torch.randn(2, 3, 32, 32 if large else 64)
    out = model(x)
    assert out.shape == (2, 42)
    assert torch.isfinite(out).all()
    out.mean().backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing
    model.eval()
    with torch.no_grad():
        reversible = model(x)
    model.set_grad_checkpointing(False)
    assert not model.body.reversible
    with torch.set_grad_enabled(not large):
        torch.testing.assert_close(model(x), reversible, rtol=1e-4, atol=1e-5)
    model.set_grad_checkpointing()
    assert model.body.reversible


def test_switching_checkpointing_changes_memory_not_gradients() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 64, 32), torch.tensor([1, 2])
    model = timm.create_model("revbifpn_s0", num_classes=4, drop_rate=0.0).train()
    grads, saved = [], []
    for enable in (True, False):
        clone = copy.deepcopy(model)
        clone.set_grad_checkpointing(enable)
        size = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal size
            size += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = F.cross_entropy(clone(x), y)
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in clone.parameters()]))
        saved.append(size)
    assert (grads[0] - grads[1]).norm() < 1e-4 * grads[1].norm()
    assert saved[0] < saved[1] / 3


@pytest.mark.parametrize("pool", [p for p in POOLS if p])
def test_pooling(pool: str) -> None:
    model = timm.create_model("revbifpn_s0", num_classes=5, global_pool=pool).eval()
    features = torch.randn(2, 1280, 3, 2)
    avg, largest = features.mean((2, 3)), features.amax((2, 3))
    kind = pool.removeprefix("fast") or "avg"
    wanted = {"avg": avg, "max": largest, "avgmax": (avg + largest) / 2, "catavgmax": torch.cat([avg, largest], 1)}[kind]
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), wanted)
    assert model.global_pool == pool
    assert model.head_hidden_size == wanted.shape[1]
    model.reset_classifier(7)  # keeps the pooling
    assert model.global_pool == pool
    assert model.forward_head(features).shape == (2, 7)
    model.reset_classifier(6, "avg")
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), avg)
    assert model.head_hidden_size == 1280
    assert model.forward_head(features).shape == (2, 6)


def test_what_cannot_be_pooled_is_said() -> None:
    with pytest.raises(ValueError, match=r"global_pool must be one of 'avg', .*'' for none\), got 'mean'"):
        timm.create_model("revbifpn_s0", global_pool="mean")
    model = timm.create_model("revbifpn_s0", num_classes=5, global_pool="").eval()
    features = model.forward_features(torch.randn(1, 3, 32, 32))
    assert features.shape == (1, 1280, 1, 1)
    with pytest.raises(ValueError, match="reset_classifier\\(num_classes, 'avg'\\)"):
        model.forward_head(features)
    model.reset_classifier(3, "max")
    assert model.forward_head(features).shape == (1, 3)


def test_other_image_sizes() -> None:
    model = timm.create_model("revbifpn_s0", num_classes=5).eval()
    with torch.no_grad():
        for h, w in ((32, 32), (96, 64), (64, 160)):
            assert model.forward_features(torch.randn(1, 3, h, w)).shape == (1, 1280, h // 32, w // 32)
            assert model(torch.randn(1, 3, h, w)).shape == (1, 5)


@pytest.mark.parametrize("coarse", [False, True])
def test_groups_follow_the_depth(coarse: bool) -> None:
    model = meta_model("revbifpn_s0", in_chans=12)
    group_of = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    assert set(group_of) == {name for name, _ in model.named_parameters()}
    in_order = ["stem.weight"]
    layers = range(1, len(model.body), 2 if coarse else 1)
    in_order += [next(n for n, _ in model.named_parameters() if n.startswith(f"body.{layer}.")) for layer in layers]
    in_order += ["neck.0.depthwise.conv.weight", "head.final.conv.weight", "head.fc.weight"]
    assert [group_of[name] for name in in_order] == list(range(len(in_order)))
    if coarse:  # a stage's blocks and its silo share a group
        assert group_of["body.1.chains.0.0.f.project.norm.bias"] == group_of["body.2.down.0.1.project.norm.bias"]
    assert model.no_weight_decay() == set()


def test_freezing_and_unfreezing() -> None:
    model = timm.create_model("revbifpn_s0", num_classes=3, in_chans=4).train()
    keys = set(model.state_dict())
    frozen = ["stem", "body.1", "body.2", "neck.0"]
    freeze(model, frozen)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 4, 32, 32)).square().sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert (p.grad is None) == name.startswith(tuple(f"{f}." for f in frozen)), name
    for key, value in model.state_dict().items():
        if key.startswith(tuple(f"{f}." for f in frozen)):
            assert torch.equal(value, before[key]), key
    assert not torch.equal(model.state_dict()["body.3.chains.0.0.f.project.norm.running_mean"], torch.zeros(24))
    unfreeze(model, frozen)
    assert set(model.state_dict()) == keys
    model.zero_grad()
    model(torch.randn(2, 4, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_frozen_whole_model_under_a_new_classifier() -> None:
    model = timm.create_model("revbifpn_s0")
    freeze(model)
    model.reset_classifier(3)
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"head.fc.weight", "head.fc.bias"}


def test_reversible_mode_is_what_models_start_in() -> None:
    assert meta_model("revbifpn_s0").body.reversible
    assert not set_reversible(meta_model("revbifpn_s0"), False).body.reversible
