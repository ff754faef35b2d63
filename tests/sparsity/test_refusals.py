"""Arguments, masks and optimizers that do not go together are named, and nothing is changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from revbifpn.sparsity import MaskError, SparseTraining
from tests.sparsity.common import batch, sgd, small_network, sparse_sgd, zeros

BAD = [
    ({"sparsity": 1.0}, r"less than 1, got 1\.0: at 1 no weight would be left"),
    ({"sparsity": -0.1}, r"got -0\.1"),
    ({"sparsity": None}, r"say the sparsity"),
    ({"method": "Rigl"}, r"method must be one of static, set, rigl, gradual, got 'Rigl'"),
    ({"method": "rigl", "total_steps": None}, r"give total_steps, or end"),
    ({"method": "rigl", "update_every": 100}, r"rigl would never change a mask: with update_every=100"),
    ({"method": "rigl", "update_every": 0}, r"update_every must be at least 1 step"),
    ({"method": "rigl", "begin": 15}, r"0 <= begin < end, got 15 and 15"),
    ({"method": "rigl", "drop_fraction": 1.5}, r"drop_fraction must be above 0 and below 1, got 1\.5"),
    ({"dense": ["nothing.*"]}, r"'nothing\.\*'.*matches no parameter"),
    ({"dense": ["conv*"]}, r"no weight to make sparse"),
    ({"dense_from": 0}, r"dense_from must be a step from 1 on, got 0"),
    ({"masks": "best"}, r"random, magnitude, zeros, or masks by name, got 'best'"),
    ({"masks": {}, "sparsity": 0.5}, r"the masks say the sparsity"),
    ({"masks": {}, "sparsity": None}, r"masks of another model: conv1\.weight has none"),
    ({"masks": {}, "sparsity": None, "method": "gradual"}, r"begins dense: it takes no masks"),
    ({"state": {}}, r"no state of SparseTraining"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[str(next(iter(options.items()))) for options, _ in BAD])
def test_bad_arguments_change_nothing(options: dict[str, Any], message: str) -> None:
    model = small_network()
    optimizer = sgd(model)
    before = copy.deepcopy(model.state_dict())
    arguments = {"sparsity": 0.9, "method": "static", "total_steps": 20, "update_every": 3} | options
    with pytest.raises(ValueError, match=message):
        SparseTraining(model, optimizer, **arguments)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_masks_of_another_model_are_named() -> None:
    good = sparse_sgd(small_network()).masks
    wrong = {
        r"other\.weight is no weight": {**good, "other.weight": good["conv1.weight"]},
        r"conv1\.weight is \(16, 8, 3, 3\), its mask \(16, 8, 3\)": {**good, "conv1.weight": good["conv1.weight"][..., 0]},
        r"must be of torch\.bool": {**good, "conv1.weight": good["conv1.weight"].float()},
        r"conv1\.weight would be left without a weight": {**good, "conv1.weight": torch.zeros_like(good["conv1.weight"])},
    }
    for message, masks in wrong.items():
        with pytest.raises(MaskError, match=message):
            sparse_sgd(small_network(), sparsity=None, masks=masks)


def test_an_optimizer_of_another_network_or_with_steps_taken_is_refused() -> None:
    model = small_network()
    with pytest.raises(ValueError, match=r"does not train conv1\.weight \(2 weights"):
        SparseTraining(model, sgd(small_network()), 0.5, "static")
    optimizer = sgd(model)
    images, labels = batch(0)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="made before the masks"):
        SparseTraining(model, optimizer, 0.5, "static")
    assert zeros(model.conv1.weight) == 0
