"""What MMDetection's own tests ask of its ResNet and HRNet, asked of RevBiFPN: shapes, modes, freezing, initialisation.

Checkpoints, levels that are left out and operators on the levels are in ``tests/integrations/test_mmdet.py``.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from revbifpn.integrations.mmdet import RevBiFPNBackbone
from revbifpn.memory import profile_training
from revbifpn.models import VARIANTS
from tests.oracle import image


def norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def train_step(backbone: nn.Module) -> None:
    sum(level.mean() for level in backbone(image(2, 64, 64))).backward()


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("name", VARIANTS)
def test_output_shapes_of_every_variant(name: str) -> None:
    with torch.device("meta"):
        backbone = RevBiFPNBackbone(name).train()
        levels = backbone(torch.empty(2, 3, 96, 160))
    channels = VARIANTS[name].neck_channels
    assert [tuple(level.shape) for level in levels] == [
        (2, channels[i], 96 // stride, 160 // stride) for i, stride in enumerate((4, 8, 16, 32))
    ]


@pytest.mark.parametrize("out_indices", [(0,), (2,), (3,), (0, 3), [1, 2, 3], (0, 1, 2, 3)])
def test_output_shapes_of_some_levels(out_indices: list[int]) -> None:
    levels = RevBiFPNBackbone("s0", out_indices=out_indices)(image(1, 64, 32))
    assert isinstance(levels, tuple)
    channels = VARIANTS["s0"].neck_channels
    assert [tuple(level.shape) for level in levels] == [(1, channels[i], 16 >> i, 8 >> i) for i in out_indices]


@pytest.mark.parametrize("frozen_stages", [1, 3])
def test_frozen_stages_stay_so_in_every_mode(frozen_stages: int) -> None:
    """Right after construction, and after ``train`` and ``eval``, as MMDetection's runners call them."""
    backbone = RevBiFPNBackbone("s0", frozen_stages=frozen_stages)
    for switch in (lambda: backbone, backbone.train, backbone.eval, backbone.train):
        switch()
        for stage in range(backbone.variant.num_stages):
            frozen = stage < frozen_stages
            for layer in backbone.stage_layers(stage):
                assert all(p.requires_grad != frozen for p in layer.parameters())
                assert all(norm.training == (backbone.training and not frozen) for norm in norms(layer))
        assert all(norm.training == backbone.training for norm in norms(backbone.neck))


def test_frozen_weights_do_not_move_in_training() -> None:
    """With MMEngine's optimizer, weight decay and momentum included."""
    backbone = RevBiFPNBackbone("s0", frozen_stages=2).train()
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    statistics_before = statistics(backbone)
    wrapper = build_optim_wrapper(
        backbone, dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=0.1))
    )
    for _ in range(2):
        wrapper.update_params(sum(level.square().mean() for level in backbone(image(2, 64, 64))))
    frozen = {f"body.{i}." for i in range(1, 5)}  # two layers a stage, after the space-to-depth

    def is_frozen(name: str) -> bool:
        return any(name.startswith(prefix) for prefix in frozen)

    assert {name for name, p in backbone.named_parameters() if torch.equal(p, before[name])} == set(filter(is_frozen, before))
    now = statistics(backbone)
    assert {name for name in now if torch.equal(now[name], statistics_before[name])} == set(filter(is_frozen, now))


@pytest.mark.parametrize("reversible", [True, False])
def test_each_frozen_stage_saves_memory(reversible: bool) -> None:
    """Predicted for a GPU, SGD with momentum: no gradients and no momentum, in stored mode no activations either."""
    peaks = []
    for frozen_stages in (-1, 2, 5):
        backbone = RevBiFPNBackbone("s0", frozen_stages=frozen_stages, reversible=reversible).train()
        images = torch.empty(2, 3, 256, 256, device="meta")
        peaks.append(profile_training(backbone, [images], device="cuda", optimizer="sgd").peak)
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)
    assert peaks[-1] < (0.8 if reversible else 0.3) * peaks[0]  # 0.77 and 0.25


def test_norm_eval_holds_every_norm_and_nothing_else() -> None:
    backbone = RevBiFPNBackbone("s0", norm_eval=True, drop_path_rate=0.5).train()
    before = statistics(backbone)
    train_step(backbone)
    assert backbone.training
    assert not any(norm.training for norm in norms(backbone))
    assert all(module.training for module in backbone.modules() if not isinstance(module, _BatchNorm))
    assert all(torch.equal(value, before[name]) for name, value in statistics(backbone).items())
    assert all(p.requires_grad and p.grad is not None for p in backbone.parameters())


def test_eval_mode_depends_on_no_other_sample_and_moves_nothing() -> None:
    backbone = RevBiFPNBackbone("s0", drop_path_rate=0.5).train()
    train_step(backbone)  # statistics that are not the initial ones
    backbone.eval()
    before = statistics(backbone)
    x = image(2, 64, 64)
    with torch.no_grad():
        together, alone = backbone(x), backbone(x[:1])
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[:1], one, rtol=1e-4, atol=1e-5)  # convolutions of another batch size: float32 rounding
    assert all(torch.equal(value, before[name]) for name, value in statistics(backbone).items())


def test_with_cp_changes_nothing() -> None:
    """MMDetection's ``with_cp`` asks for what the reversible mode does by itself."""
    torch.manual_seed(0)
    plain = RevBiFPNBackbone("s0")
    with_cp = RevBiFPNBackbone("s0", with_cp=True)
    with_cp.load_state_dict(plain.state_dict())
    assert with_cp.body.reversible
    for backbone in (plain, with_cp):
        train_step(backbone.train())
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), with_cp.parameters(), strict=True))


def test_init_cfg() -> None:
    """Without one, and with MMEngine's initialisers, in a list and for some layers; a second call begins anew."""
    backbone = RevBiFPNBackbone("s0")
    assert isinstance(backbone, BaseModule)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    layers: list[dict[str, Any]] = [
        dict(type="Constant", layer="BatchNorm2d", val=0.5, bias=0.25),
        dict(type="Normal", layer="Conv2d", std=1e-4),
    ]
    backbone = RevBiFPNBackbone("s0", init_cfg=layers)
    for _ in range(2):
        backbone.init_weights()
        assert all((norm.weight == 0.5).all() and (norm.bias == 0.25).all() for norm in norms(backbone))
        assert all(m.weight.std() < 1e-3 for m in backbone.modules() if isinstance(m, nn.Conv2d))
        assert backbone.init_cfg == layers


def test_first_weights_do_not_change_what_is_frozen(tmp_path: Path) -> None:
    """Runners initialise after construction."""
    torch.save(RevBiFPNBackbone("s0").state_dict(), tmp_path / "s0.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "s0.pth"))
    backbone = RevBiFPNBackbone("s0", frozen_stages=2, init_cfg=init_cfg)
    backbone.init_weights()
    train_step(backbone.train())
    assert not any(p.requires_grad for stage in (0, 1) for layer in backbone.stage_layers(stage) for p in layer.parameters())


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_independent_and_equal(how: str) -> None:
    """MMEngine's EMA hook copies models, its launchers pickle them."""
    backbone = RevBiFPNBackbone("s0", out_indices=(1, 2, 3), frozen_stages=1, norm_eval=True).train()
    train_step(backbone)
    twin = copy.deepcopy(backbone) if how == "deepcopy" else pickle.loads(pickle.dumps(backbone))
    twin.train()
    assert not any(norm.training for norm in norms(twin))
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in backbone.parameters()]
    backbone.zero_grad()
    twin.zero_grad()
    for model in (backbone, twin):
        train_step(model)
    pairs = [(a, b) for a, b in zip(backbone.parameters(), twin.parameters(), strict=True) if a.requires_grad]
    assert all(torch.equal(a.grad, b.grad) and a.grad is not b.grad for a, b in pairs)


def test_config_of_another_backbone_is_refused_by_name() -> None:
    """A config whose backbone was a ResNet's and got another type, without ``_delete_``."""
    init_default_scope("mmdet")
    with pytest.raises(TypeError, match="'depth'"):
        MODELS.build(dict(type="RevBiFPN", variant="s0", depth=50, num_stages=4, style="pytorch"))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64, 48), (1, 3, 0, 64)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"RevBiFPN-s0: (expected an image batch of shape|image sides must be multiples of 32)"
    ):
        RevBiFPNBackbone("s0")(torch.zeros(shape))
