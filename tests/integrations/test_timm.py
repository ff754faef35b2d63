"""RevBiFPN as a timm model."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import timm
import torch
from timm.optim import create_optimizer_v2

import revbifpn
from revbifpn import RevBiFPN, ReversibleSequential, convert_checkpoint, set_reversible
from tests.oracle import reference_state_dict


def test_import_registers_and_construction_prints_nothing() -> None:
    code = "import revbifpn, timm; m = timm.create_model('revbifpn_s0'); assert len(timm.list_models('revbifpn_*')) == 7"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == ""
    assert done.stderr == ""


def test_import_needs_no_detection_stack() -> None:
    code = (
        "import sys\n"
        "for name in ('mmengine', 'mmcv', 'mmdet', 'sklearn', 'skimage', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"  # importing it raises ImportError
        "import revbifpn\n"
        "try:\n"
        "    import revbifpn.integrations.mmdet\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert "pip install 'revbifpn[mmdet]'" in done.stdout


def test_arguments_reach_the_model() -> None:
    model = timm.create_model("revbifpn_s1", num_classes=7, in_chans=4, drop_rate=0.1, drop_path_rate=0.2, reversible=False)
    assert model.head.fc.out_features == 7
    assert model.in_chans == 4
    assert model.head.drop_rate == 0.1
    assert max(m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")) == 0.2
    assert not model.reversible
    assert not model.body.reversible
    assert timm.create_model("revbifpn_s0", exact=True).body.exact_bits == 13
    assert timm.create_model("revbifpn_s0", exact=True, exact_bits=10).body.exact_bits == 10
    assert timm.create_model("revbifpn_s0", in_chans=1).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 1000)


def test_features_only_gives_the_pyramid() -> None:
    model = timm.create_model("revbifpn_s0", features_only=True).eval()
    assert model.feature_info.channels() == [48, 64, 128, 320]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        levels = model(torch.randn(2, 3, 64, 96))
    assert [tuple(x.shape) for x in levels] == [(2, 48, 16, 24), (2, 64, 8, 12), (2, 128, 4, 6), (2, 320, 2, 3)]
    assert not any("head" in name for name, _ in model.named_parameters())
    some = timm.create_model("revbifpn_s0", features_only=True, out_indices=(1, -1)).eval()
    assert some.feature_info.channels() == [64, 320]
    assert len(some(torch.randn(1, 3, 32, 32))) == 2


def test_features_only_trains_reversibly() -> None:
    model = timm.create_model("revbifpn_s0", features_only=True).train()
    sum(level.mean() for level in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_methods_of_timm_models() -> None:
    model = timm.create_model("revbifpn_s0", num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, 1280, 2, 2)
        assert torch.equal(model.forward_head(features), model(x))
        assert model.forward_head(features, pre_logits=True).shape == (2, 1280)
        final, levels = model.forward_intermediates(x)
        assert torch.equal(final, features)
        assert len(levels) == 4
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)
        model.reset_classifier(0)
        assert model(x).shape == (2, 1280)
        model.reset_classifier(0, global_pool="")
        assert model(x).shape == (2, 1280, 2, 2)
    model.set_grad_checkpointing(False)
    assert not model.body.reversible


def test_layer_wise_learning_rates() -> None:
    model = timm.create_model("revbifpn_s0", num_classes=5)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    first, last = model.body[1], model.body[len(model.body) - 1]
    ordered = [next(m.parameters()) for m in (first, last, model.neck, model.head.steps, model.head.fc)]
    scales = [scale[id(p)] for p in ordered]
    assert scales == sorted(scales)
    assert scales[0] < scales[1] < scales[2] < scales[-1]


def test_pretrained_loads_the_published_layout(tmp_path: Path) -> None:
    """The real loading code on a file in the published layout; the published files themselves need the network."""
    reference = reference_state_dict("revbifpn_s0")
    path = tmp_path / "revbifpn_s0.pth.tar"
    torch.save(reference, path)
    overlay = {"file": str(path), "url": ""}
    model = timm.create_model("revbifpn_s0", pretrained=True, pretrained_cfg_overlay=overlay)
    converted = convert_checkpoint(reference)
    assert all(torch.equal(value, converted[key]) for key, value in model.state_dict().items())
    fine_tuned = timm.create_model("revbifpn_s0", pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay)
    assert fine_tuned.head.fc.out_features == 5
    assert torch.equal(fine_tuned.neck[0].project.conv.weight, converted["neck.0.project.conv.weight"])
    features = timm.create_model("revbifpn_s0", pretrained=True, features_only=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(features.model.neck[0].project.conv.weight, converted["neck.0.project.conv.weight"])


def test_default_cfg_names_the_published_file() -> None:
    cfg = timm.get_pretrained_cfg("revbifpn_s6")
    assert cfg.url.endswith("/revbifpn/revbifpn_s6.pth.tar")
    assert cfg.input_size == (3, 352, 352)
    assert cfg.classifier == "head.fc"


def test_mode_is_one_switch() -> None:
    model = timm.create_model("revbifpn_s0")
    stored = set_reversible(copy.deepcopy(model), False)
    assert model.state_dict().keys() == stored.state_dict().keys()
    assert not any(m.reversible for m in stored.modules() if isinstance(m, ReversibleSequential | RevBiFPN))
    assert revbifpn.__version__


def test_trains_on_a_fixed_batch() -> None:
    torch.manual_seed(0)
    model = timm.create_model("revbifpn_s0", num_classes=4, drop_rate=0.0).train()
    optimizer = create_optimizer_v2(model, "adamw", lr=2e-3)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
