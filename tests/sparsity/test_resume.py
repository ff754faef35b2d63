"""Going on from a state: bit for bit, whatever was saved; and states that do not fit."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from revbifpn.sparsity import MaskError, SparseTraining
from tests.sparsity.common import small_network, train


def make(method: str, **options: Any) -> tuple[nn.Module, SparseTraining]:
    model = small_network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {"sparsity": 0.9, "total_steps": 24, "update_every": 3} | options
    return model, SparseTraining(model, optimizer, method=method, **options)


def saved(model: nn.Module, sparse: SparseTraining) -> dict[str, Any]:
    """Through a file that is read without free unpickling."""
    file = io.BytesIO()
    content = {"model": model.state_dict(), "optimizer": sparse.optimizer.state_dict(), "sparsity": sparse.state_dict()}
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("method", "options"),
    [("static", {}), ("static", {"dense_from": 5}), ("set", {}), ("rigl", {}), ("rigl", {"dense_from": 12}), ("gradual", {})],
)
@pytest.mark.parametrize("at", [4, 6])
@pytest.mark.parametrize("loaded_first", [False, True], ids=["load-after", "state-argument"])
def test_resumed_training_equals_the_uninterrupted_one(
    method: str, options: dict[str, Any], at: int, loaded_first: bool
) -> None:
    model, sparse = make(method, **options)
    train(model, sparse, range(at))
    state = saved(model, sparse)
    losses = train(model, sparse, range(at, 16))

    if loaded_first:
        other = small_network(seed=9)
        other.load_state_dict(state["model"])
        optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2)
        optimizer.load_state_dict(state["optimizer"])
        arguments = {"sparsity": 0.9, "total_steps": 24, "update_every": 3, "seed": 5} | options
        resumed = SparseTraining(other, optimizer, method=method, state=state["sparsity"], **arguments)
    else:
        other, resumed = make(method, seed=5, **options)
        other.load_state_dict(state["model"])
        resumed.optimizer.load_state_dict(state["optimizer"])
        resumed.load_state_dict(state["sparsity"])
    assert train(other, resumed, range(at, 16)) == losses
    assert resumed.steps == sparse.steps == 16
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    for name in sparse.masks:
        assert torch.equal(sparse.masks[name], resumed.masks[name])
    assert torch.equal(sparse.state_dict()["generator"], resumed.state_dict()["generator"])


def test_states_that_do_not_fit_change_nothing() -> None:
    model, sparse = make("rigl")
    train(model, sparse, range(4))
    state = saved(model, sparse)
    _fresh, other = make("rigl", seed=1)
    with pytest.raises(MaskError, match=r"zeros and the masks disagree: conv1\.weight has \d+ weights that its mask drops"):
        other.load_state_dict(state["sparsity"])  # before the weights

    _another, half = make("rigl", sparsity=0.5)
    before = copy.deepcopy(half.state_dict())
    with pytest.raises(
        MaskError, match=r"another sparsity or schedule: after 4 steps conv1\.weight has 1036 zeros of 1152.*576"
    ):
        half.load_state_dict(state["sparsity"])
    assert half.steps == 0
    assert all(torch.equal(before["masks"][name], half.masks[name]) for name in half.masks)

    _lifted_model, lifted = make("rigl", dense_from=2)
    with pytest.raises(MaskError, match=r"dense_from=2"):
        lifted.load_state_dict(state["sparsity"])
    with pytest.raises(MaskError, match="no state of SparseTraining: it has no generator"):
        other.load_state_dict({key: value for key, value in state["sparsity"].items() if key != "generator"})
