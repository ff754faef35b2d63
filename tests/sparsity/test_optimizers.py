"""Any optimizer: dropped weights and their state stay zero, kept ones are trained."""

from __future__ import annotations

import pytest
import timm.optim
import torch
from torch import Tensor

from revbifpn.sparsity import SparseTraining
from tests.sparsity.common import small_network, train, zeros

OPTIMIZERS = [
    "sgd",
    "momentum",
    "adamw",
    "lamb",
    "rmsproptf",
    "adafactor",
    "adafactorbv",
    "lion",
    "adan",
    "nadamw",
    "adopt",
    "laprop",
    "lars",
    "muon",
    "radam",
    "madgrad",
    "lookahead_adamw",
    "lookahead_sgd",
]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dropped_weights_stay_zero(name: str) -> None:
    model = small_network()
    optimizer = timm.optim.create_optimizer_v2(model, opt=name, lr=1e-2, weight_decay=0.05)
    sparse = SparseTraining(model, optimizer, 0.8, "rigl", total_steps=20, update_every=3)
    start = {key: weight.detach().clone() for key, weight in sparse.weights.items()}
    states: dict[Tensor, dict[str, Tensor]] = getattr(optimizer, "_base_optimizer", optimizer).state
    for step in range(8):
        train(model, sparse, range(step, step + 1), max_norm=1.0)
        for key, weight in sparse.weights.items():
            dropped = ~sparse.masks[key]
            assert not weight.detach()[dropped].any()
            assert zeros(dropped) == weight.numel() - int(0.8 * weight.numel())
            for value in states[weight].values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    assert not value[dropped].any()
    assert sparse.steps == 8
    assert all(not torch.equal(start[key], weight) for key, weight in sparse.weights.items())
    assert all(torch.isfinite(weight).all() for weight in sparse.weights.values())


def test_the_list_has_optimizers_that_timm_has() -> None:
    assert {name.removeprefix("lookahead_") for name in OPTIMIZERS} <= set(timm.optim.list_optimizers())
