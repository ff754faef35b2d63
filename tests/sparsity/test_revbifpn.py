"""RevBiFPN trains sparse in every mode: equal masks, and in exact mode the same training bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from revbifpn.sparsity import SparseTraining
from tests.sparsity.common import tiny_revbifpn, train

MODES: dict[str, dict[str, Any]] = {
    "stored": {"reversible": False},
    "reversible": {},
    "exact": {"exact": True},
    "exact stored": {"exact": True, "reversible": False},
}


def trained(mode: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, SparseTraining, list[float]]:
    model = tiny_revbifpn(**MODES[mode]).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparse = SparseTraining(model, optimizer, 0.8, "rigl", total_steps=12, update_every=2)
    # Not at 32 pixels: where the coarsest stream has one position, exact mode's bits differ between stored and reversible.
    return model, sparse, train(model, sparse, range(6), side=64, size=2, max_norm=1.0)


@pytest.fixture(scope="module")
def runs() -> dict[str, tuple[nn.Module, SparseTraining, list[float]]]:
    return {mode: trained(mode) for mode in ("exact", "exact stored")}


def test_exact_mode_is_the_same_training_bit_for_bit_stored_or_not(runs: dict[str, Any]) -> None:
    (model, sparse, losses), (other, its, other_losses) = runs["exact"], runs["exact stored"]
    assert losses == other_losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(mask, its.masks[name]) for name, mask in sparse.masks.items())


def test_reversible_mode_has_the_masks_of_stored_mode() -> None:
    """Its gradients are equal up to rounding, which in float64 is far below the distances of the entries that RigL sorts."""
    (_, stored, losses), (_, reversible, others) = (trained(mode, torch.float64) for mode in ("stored", "reversible"))
    assert losses == pytest.approx(others, rel=1e-9)
    assert all(torch.equal(mask, reversible.masks[name]) for name, mask in stored.masks.items())


@pytest.mark.parametrize("mode", ["exact", "exact stored"])
def test_masks_have_moved_and_their_zeros_are_exact(runs: dict[str, Any], mode: str) -> None:
    model, sparse, _ = runs[mode]
    initial = SparseTraining(
        fresh := tiny_revbifpn(), torch.optim.SGD(fresh.parameters(), lr=0.1), 0.8, "rigl", total_steps=12, update_every=2
    ).masks
    assert any(not torch.equal(initial[name], mask) for name, mask in sparse.masks.items())
    for name, weight in sparse.weights.items():
        assert weight.numel() - int(sparse.masks[name].sum()) == int(0.8 * weight.numel() + 1e-6)
        assert not weight.detach()[~sparse.masks[name]].any()
    assert list(model.state_dict()) == list(tiny_revbifpn().state_dict())
