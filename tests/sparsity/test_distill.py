"""Training a pruned network on: zeros stay, features are matched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from revbifpn.sparsity.distill import FeatureTaps, feature_names, square_head, train_pruned
from revbifpn.sparsity.prune import prune
from tests.sparsity.networks import correlated, small_net, tiny_revbifpn

LABELS = torch.arange(8) % 5


def test_square_head_is_its_formula() -> None:
    torch.manual_seed(0)
    ours, theirs = [torch.randn(2, 3, 4), torch.randn(2, 5)], [torch.randn(2, 3, 4), 7 * torch.randn(2, 5)]
    expected = sum(((a - b) ** 2).mean() / ((b**2).mean() + 1e-6) for a, b in zip(ours, theirs, strict=True))
    torch.testing.assert_close(square_head(ours, theirs), expected)
    assert square_head(theirs, theirs) == 0
    with pytest.raises(ValueError, match=r"must have equal shapes, got \[\(2, 3, 4\)\] and \[\(2, 5\)\]"):
        square_head(ours[:1], theirs[1:])
    with pytest.raises(ValueError, match="must have equal shapes"):
        square_head([], [])


@pytest.mark.parametrize("reversible", [True, False])
def test_the_levels_of_a_pyramid_get_a_gradient(reversible: bool) -> None:
    model, images = tiny_revbifpn(reversible).train(), correlated(2, 64)
    assert feature_names(model) == [f"levels.{level}" for level in range(4)]
    with FeatureTaps(model) as taps:
        model(images)
    levels = taps.take()
    assert [level.shape[-1] for level in levels] == [16, 8, 4, 2]
    square_head(levels, [level.detach() + 1 for level in levels]).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("body", "neck")):
            assert parameter.grad is not None, name
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.SGD, dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)), (torch.optim.AdamW, dict(lr=1e-2))],
)
@pytest.mark.parametrize("distill", [True, False])
def test_zeros_are_held_and_the_loss_falls(optimizer: Any, options: dict[str, Any], distill: bool) -> None:
    model = small_net()
    teacher = copy.deepcopy(model).train() if distill else None
    masks = prune(model, correlated(24), 0.7).masks
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    images = correlated(8, seed=5)
    losses = train_pruned(
        model, masks, [(images, LABELS)] * 25, optimizer(model.parameters(), **options), teacher=teacher, clip=5.0
    )
    assert len(losses) == 25
    assert losses[-1] < 0.8 * losses[0]
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any()
        assert not torch.equal(weight, before[name])
    assert not model.training
    if teacher is not None:
        assert teacher.training
        fresh = small_net().state_dict()
        assert all(torch.equal(fresh[key], value) for key, value in teacher.state_dict().items())


def test_distillation_brings_features_nearer() -> None:
    images = correlated(16, seed=5)
    distances = {}
    for teacher in (None, small_net()):
        model = small_net()
        masks = prune(model, correlated(24), 0.8, method="magnitude").masks
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        train_pruned(model, masks, [(images, torch.arange(16) % 5)] * 20, optimizer, teacher=teacher)
        distances[teacher is not None] = float(_distance(model.train(), small_net(), images))
    assert distances[True] < 0.7 * distances[False]


def _distance(student: nn.Module, teacher: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), FeatureTaps(student) as ours, FeatureTaps(teacher) as theirs:
        student(images)
        teacher(images)
    return square_head(ours.take(), theirs.take())


def test_the_gradients_that_are_clipped_are_the_masked_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net()
    masks = prune(model, None, 0.9, method="magnitude").masks
    seen = []

    def clip(parameters: Any, most: float) -> None:
        seen.append(all(not model.get_parameter(name).grad[~mask].any() for name, mask in masks.items()))  # type: ignore[index]

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    train_pruned(model, masks, [(correlated(8), LABELS)], torch.optim.SGD(model.parameters(), lr=0.1), clip=1.0)
    assert seen == [True]


def test_bad_input() -> None:
    model, batches = small_net(), [(correlated(8), LABELS)]
    masks = prune(model, None, 0.5, method="magnitude").masks
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="zeros and the masks disagree: grouped.weight has"):
        train_pruned(small_net(), masks, batches, optimizer)
    with pytest.raises(ValueError, match="masks of another model: SmallNet has no x"):
        train_pruned(model, {"x": masks["point.weight"]}, batches, optimizer)
    with pytest.raises(ValueError, match="the optimizer does not train grouped.weight"):
        train_pruned(model, masks, batches, torch.optim.SGD(small_net().parameters(), lr=0.1))
    with pytest.raises(ValueError, match="Linear has no feature_info"):
        train_pruned(model, masks, batches, optimizer, teacher=nn.Linear(3, 3))
    with pytest.raises(ValueError, match="SmallNet has no module 'levels.0'"):
        train_pruned(model, masks, batches, optimizer, teacher=small_net(), features=["levels.0"])
    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan"):
        train_pruned(model, masks, [(torch.full((8, 3, 12, 12), torch.nan), LABELS)], optimizer)
