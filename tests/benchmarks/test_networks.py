"""The networks that are measured: what modes they have, and that a mode is what it says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.networks import (
    BUDGETS,
    OWN_MODES,
    PLAIN_MODES,
    Network,
    NotThereError,
    build_all,
    image_size_of,
    modes_of,
)
from benchmarks.plain import PlainRevBiFPN
from revbifpn import RevBiFPN, ReversibleSequential
from revbifpn.memory.sources import SubjectError


def test_modes() -> None:
    assert modes_of("revbifpn_s0") == (*PLAIN_MODES, *OWN_MODES)
    assert modes_of("efficientnet_b0") == ("stored", "checkpointing")
    assert modes_of("hrnet_w18") == ("stored",)
    with pytest.raises(SubjectError, match="unknown model 'efficientnet_b99'"):
        modes_of("efficientnet_b99")


@pytest.mark.parametrize(
    ("name", "size"), [("revbifpn_s3", 288), ("efficientnet_b3", 300), ("efficientnet_b7", 600), ("resnet50", 224)]
)
def test_images_have_the_size_of_the_published_accuracy(name: str, size: int) -> None:
    assert image_size_of(name) == size


def test_all_modes_of_a_network_have_the_same_weights() -> None:
    modes = [mode for mode in OWN_MODES if mode not in list(BUDGETS)[1:]]  # to plan a budget takes seconds
    states = [model.state_dict() for model in build_all(Network("revbifpn_s0", mode, 2, 32) for mode in modes).values()]
    states.append(Network("revbifpn_s0", "plain", 2, 32).build().state_dict())
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(value, states[0][key]) for key, value in state.items())


def test_each_mode_is_set() -> None:
    def body(mode: str) -> ReversibleSequential:
        model = Network("revbifpn_s0", mode, 2, 32).build()
        assert isinstance(model, RevBiFPN)
        assert model.training
        return model.body

    assert body("reversible").reversible
    assert not body("stored").reversible
    assert body("exact").exact_bits is not None
    plain, checkpointing = (Network("revbifpn_s0", mode, 2, 32).build() for mode in PLAIN_MODES)
    assert isinstance(plain, PlainRevBiFPN)
    assert isinstance(checkpointing, PlainRevBiFPN)
    assert (plain.checkpointing, checkpointing.checkpointing) == (False, True)
    assert Network("mobilenetv3_small_050", "checkpointing", 2, 32).build().grad_checkpointing


def test_memory_formats() -> None:
    network = Network("revbifpn_s0", "plain", 2, 32, channels_last=True)
    weight = network.build().get_parameter("body.1.chains.0.0.f.project.conv.weight")
    assert network.images().is_contiguous(memory_format=torch.channels_last)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert str(network) == "revbifpn_s0, plain, channels_last"


@pytest.mark.parametrize(("name", "mode"), [("revbifpn_s0", "checkpointing"), ("hrnet_w18_small", "checkpointing")])
def test_a_mode_that_is_not_there(name: str, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotThereError, match=f"no mode '{mode}': it has"):
        Network(name, mode, 2, 32).build()
    assert build_all([Network(name, mode, 2, 32)]) == {}
    assert capsys.readouterr().out.startswith("left out: ")


def test_budgets_are_fractions() -> None:
    assert all(name == f"budget {fraction}" and 0 < fraction < 1 for name, fraction in BUDGETS.items())
