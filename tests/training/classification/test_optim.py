"""timm's optimizers behind MMEngine's wrapper."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from mmengine.optim import CosineAnnealingLR, OptimWrapper, build_optim_wrapper
from torch import nn

from revbifpn.training.classification import AutocastOptimWrapper, ImageClassifier


def wrapper(model: nn.Module, type: str = "OptimWrapper", **optimizer: Any) -> OptimWrapper:
    cfg = dict(type=type, constructor="TimmOptimWrapperConstructor", optimizer=optimizer)
    return build_optim_wrapper(model, cfg)


def rate_of(optim: OptimWrapper, parameter: nn.Parameter) -> float:
    (group,) = [g for g in optim.optimizer.param_groups if any(p is parameter for p in g["params"])]
    return float(group["lr"])


def test_biases_and_norms_have_no_weight_decay() -> None:
    model = ImageClassifier("revbifpn_s0", 3)
    optim = wrapper(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    decay = {id(p): group["weight_decay"] for group in optim.optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim <= 1 else 0.05)


def test_layer_decay_scales_the_rates_and_schedules_keep_the_ratios() -> None:
    model = ImageClassifier("revbifpn_s0", 3)
    optim = wrapper(model, opt="adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.5)
    first, *_ = model.backbone.body.parameters()
    last = model.backbone.head.fc.weight
    assert rate_of(optim, last) == pytest.approx(1e-2)
    assert rate_of(optim, first) < 1e-2 * 0.5**8
    groups = timm.optim.param_groups_layer_decay(model.backbone, weight_decay=0.05, layer_decay=0.5)
    for group in groups:
        assert rate_of(optim, group["params"][0]) == pytest.approx(1e-2 * group["lr_scale"])
    ratio = rate_of(optim, first) / rate_of(optim, last)

    schedule = CosineAnnealingLR(optim, T_max=10, by_epoch=False)
    for _ in range(4):
        optim.update_params(model.backbone.head.fc.weight.sum())
        schedule.step()
    assert rate_of(optim, last) < 0.9e-2
    assert rate_of(optim, first) / rate_of(optim, last) == pytest.approx(ratio)


@pytest.mark.parametrize("name", ["rmsproptf", "lamb", "sgd"])
def test_other_optimizers_of_timm(name: str) -> None:
    model = ImageClassifier("test_resnet", 3)
    optim = wrapper(model, opt=name, lr=0.1, weight_decay=1e-4)
    before = [p.detach().clone() for p in model.parameters()]
    optim.update_params(model(torch.randn(2, 3, 32, 32)).square().mean())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_paramwise_settings_are_refused() -> None:
    cfg = dict(
        constructor="TimmOptimWrapperConstructor", optimizer=dict(opt="sgd", lr=0.1), paramwise_cfg=dict(norm_decay_mult=0.0)
    )
    with pytest.raises(ValueError, match="takes no paramwise_cfg"):
        build_optim_wrapper(ImageClassifier("test_resnet", 3), cfg)


def test_autocast_computes_in_bfloat16_on_a_cpu() -> None:
    model = ImageClassifier("test_resnet", 3)
    optim = wrapper(model, type="AutocastOptimWrapper", opt="sgd", lr=0.1)
    assert isinstance(optim, AutocastOptimWrapper)
    with optim.optim_context(model):
        assert model(torch.randn(2, 3, 32, 32)).dtype == torch.bfloat16
    assert model(torch.randn(2, 3, 32, 32)).dtype == torch.float32
