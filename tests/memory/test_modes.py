"""Modes reach the model."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from revbifpn.memory.modes import MODES, is_mode, modes_of, set_mode
from tests.memory.conftest import make_tiny


def test_which_models_have_which_modes() -> None:
    assert modes_of(timm.create_model("revbifpn_s0")) == ("reversible", "exact", "stored")
    assert modes_of(make_tiny()) == ("reversible", "exact", "stored")
    assert modes_of(timm.create_model("resnet18")) == ("stored", "checkpointing")
    assert modes_of(timm.create_model("hrnet_w18_small")) == ("stored",)  # its method refuses to switch it on
    assert modes_of(nn.Linear(2, 2)) == ("stored",)


def test_every_mode_that_a_model_can_have_can_be_named() -> None:
    assert {*modes_of(make_tiny()), *modes_of(timm.create_model("resnet18"))} == set(MODES)
    assert all(map(is_mode, MODES))
    assert not any(map(is_mode, ("", "Stored", "fast", "make_model")))


def test_a_reversible_model_is_switched() -> None:
    model = make_tiny()
    for mode, reversible, exact in (
        ("stored", False, False),
        ("exact", True, True),
        ("reversible", True, False),
    ):
        set_mode(model, mode)
        assert (model.body.reversible, model.body.exact_bits is not None) == (reversible, exact)


def test_checkpointing_is_switched() -> None:
    model = timm.create_model("resnet18")
    assert modes_of(model)
    assert model.grad_checkpointing is False, "asking does not switch it on"
    set_mode(model, "checkpointing")
    assert model.grad_checkpointing is True
    set_mode(model, "stored")
    assert model.grad_checkpointing is False


def test_a_mode_that_the_model_does_not_have() -> None:
    with pytest.raises(ValueError, match="no mode 'checkpointing': choose from reversible, exact, stored"):
        set_mode(make_tiny(), "checkpointing")
