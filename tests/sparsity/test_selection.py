from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import revbifpn  # noqa: F401  (registers the timm models)
from revbifpn.sparsity import select_weights, selection_table
from tests.sparsity.common import small_network, tiny_revbifpn


def test_stem_classifier_depthwise_norms_and_biases_stay_dense() -> None:
    assert list(select_weights(small_network())) == ["conv1.weight", "conv2.weight"]


@pytest.mark.parametrize("in_chans", [1, 3])
def test_revbifpn_keeps_depthwise_classifier_and_stem_dense(in_chans: int) -> None:
    model = tiny_revbifpn(in_chans=in_chans)  # with one channel the stem has no weights
    selected = select_weights(model)
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    expected = {f"{name}.weight" for name, conv in convs.items() if conv.groups == 1 and name != "stem"}
    assert set(selected) == expected
    assert expected
    assert "head.fc.weight" not in selected


@pytest.mark.parametrize(
    ("name", "first", "classifier"),
    [
        ("resnet18", "conv1.weight", "fc.weight"),
        ("vit_tiny_patch16_224", "patch_embed.proj.weight", "head.weight"),
        ("deit_tiny_distilled_patch16_224", "patch_embed.proj.weight", "head_dist.weight"),
        ("efficientnet_b0", "conv_stem.weight", "classifier.weight"),
    ],
)
def test_timm_models_say_their_first_convolution_and_classifier(name: str, first: str, classifier: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    selected = select_weights(model)
    assert first not in selected
    assert classifier not in selected
    table = selection_table(model)
    assert f"| {first} |" in table
    assert "dense: first convolution" in table
    assert "dense: classifier" in table


def test_downsampling_convolutions_of_resnet_become_sparse() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    assert len(select_weights(model)) == 20 - 1  # all convolutions but the first


def test_patterns_keep_parameters_and_modules_dense() -> None:
    model = small_network()
    assert list(select_weights(model, ["conv1.weight"])) == ["conv2.weight"]
    assert list(select_weights(model, ["conv2"])) == ["conv1.weight"]
    assert select_weights(model, ["conv*"]) == {}
    assert "dense: pattern conv2" in selection_table(model, ["conv2"])


def test_a_pattern_that_matches_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"'layer9\.\*'.*matches no parameter"):
        select_weights(small_network(), ["conv1", "layer9.*"])


def test_a_shared_weight_counts_once_and_a_single_layer_is_selected() -> None:
    first = nn.Linear(4, 4)
    model = nn.Sequential(first, nn.ReLU(), first, nn.Linear(4, 2))
    assert list(select_weights(model)) == ["0.weight"]
    assert list(select_weights(nn.Conv2d(4, 4, 3))) == ["weight"]
    assert list(select_weights(nn.Linear(4, 4))) == ["weight"]


def test_the_table_counts_all_parameters() -> None:
    model = small_network()
    total = sum(p.numel() for p in model.parameters())
    last = selection_table(model).splitlines()[-1]
    assert f"{total:,}" in last
    assert f"{1152 + 2304:,} " in last
