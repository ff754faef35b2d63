"""Exact mode of whole models: reversible, stored, and with a budget the same bits, where batches are cut in chunks too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from revbifpn.models import RevBiFPN
from revbifpn.reversible import kernels, set_reversible
from tests.networks import SMALL


@pytest.mark.parametrize("chunk", [2**16, 2**18, 2**20])
def test_all_modes_give_the_same_bits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neck and head are cut in smaller chunks than the body, and kernels' last bits depend on the chunk."""
    monkeypatch.setattr(kernels, "chunk_bytes", lambda like, frugal, room: chunk >> (2 * frugal))
    torch.manual_seed(0)
    model = RevBiFPN(SMALL, num_classes=6, exact=True).train()
    images, labels = torch.randn(6, 3, 64, 64), torch.arange(6)

    def gradients() -> list[Tensor]:
        torch.manual_seed(1)
        return list(torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters())))

    found = {}
    for mode in ("reversible", "stored", "budget"):
        if mode == "budget":
            model.set_activation_budget(0.5, 64, 6)
        else:
            set_reversible(model, mode == "reversible")
        found[mode] = gradients()
    for mode in ("stored", "budget"):
        assert all(torch.equal(a, b) for a, b in zip(found[mode], found["reversible"], strict=True)), mode


@pytest.mark.parametrize("bf16", [False, True])
def test_images_whose_coarsest_level_is_a_single_pixel(bf16: bool) -> None:
    """There strides of more than one kind say the same, and kernels are chosen by them."""
    torch.manual_seed(0)
    model = RevBiFPN("s0", num_classes=6, drop_rate=0.0, drop_path_rate=0.0, exact=True).train()
    images, labels = torch.randn(2, 3, 32, 32), torch.arange(2)
    found = []
    for reversible in (True, False):
        set_reversible(model, reversible)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), labels)
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(map(torch.equal, *found))
