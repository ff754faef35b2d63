"""Cases of ``test_non_finite_loss.py``, as each of two processes goes through them.

DDP with accumulated gradients, and losses that are NaN in the first process and infinite in the second.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from revbifpn.training.hooks import NonFiniteLossError, NonFiniteLossHook, _average_gradients
from tests.distributed import _models as models
from tests.distributed._processes import WORLD_SIZE
from tests.training.test_non_finite_loss import COUNT, STEPS, TOLERANCE, Regression, batches, expected, sgd, spoil, train

# Steps 0 to 2, 3 to 5, and 6 and 7 make an update each. Those of the last batch of an update reduce the gradients.
BAD_STEPS = {
    "first": [[0], []],
    "middle": [[], [4]],
    "last": [[2], []],
    "last-of-the-training": [[], [7]],
    "both-at-different-steps": [[0, 5], [1, 2]],  # no finite batch is left for the first update
}


def both_keep_the_same_weights(bad: str) -> None:
    rank, bad_steps = dist.get_rank(), BAD_STEPS[bad]
    shares = [batches(seed=process) for process in range(WORLD_SIZE)]
    finite = [step not in bad_steps[rank] for step in range(STEPS)]
    model = Regression()
    ddp = MMDistributedDataParallel(model)
    loss = "nan" if rank == 0 else "inf"
    train(ddp, OptimWrapper(sgd(model), accumulative_counts=COUNT), spoil(shares[rank], finite, loss))

    # One process with the joined batches: the loss is a mean over images, so its gradient is the mean of both processes'.
    any_bad = {step for steps in bad_steps for step in steps}
    reference = expected(torch.cat(shares, dim=1), [step not in any_bad for step in range(STEPS)])
    torch.testing.assert_close(model.weight.detach(), reference, rtol=0, atol=TOLERANCE)
    everyones = [torch.empty_like(reference) for _ in shares]
    dist.all_gather(everyones, model.weight.detach())
    assert torch.equal(everyones[0], everyones[1]), everyones


def average_of_parameters_not_used_everywhere() -> None:
    """As with DDP's ``find_unused_parameters``: no use counts as a gradient of 0, and one that nobody used has none."""
    rank = dist.get_rank()
    used, by_first, by_none = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    used.grad = torch.full((3,), float(1 + rank))
    by_first.grad = torch.full((3,), 4.0) if rank == 0 else None
    _average_gradients([used, by_first, by_none])
    assert used.grad.tolist() == [1.5] * 3
    assert by_first.grad is not None
    assert by_first.grad.tolist() == [2.0] * 3
    assert by_none.grad is None


class Trained(BaseModel):
    """The pyramid as MMEngine trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = models.make_model(train_norms=True)

    def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        return {"loss": models.loss_of(self.pyramid(inputs))}


def a_pyramid_leaves_the_step_out() -> None:
    """An image of one process that is infinite: both leave the step out, and what they have then is as if it had not been."""
    batches = torch.stack([models.half(models.make_batch(step)) for step in range(3)])
    spoiled = batches.clone()
    spoiled[1, 0, 0, 0, 0] = float("inf") if dist.get_rank() == 1 else 1.0
    results = []
    for inputs in (spoiled, batches[[0, 2]]):
        ddp = MMDistributedDataParallel(Trained(), broadcast_buffers=False)
        train(ddp, OptimWrapper(models.sgd(ddp)), inputs)
        results.append(ddp.state_dict())
    for name, value in results[0].items():
        assert value.isfinite().all(), name
        assert torch.equal(value, results[1][name]), name
    everyones = [torch.empty_like(p := results[0]["module.pyramid.body.1.chains.0.0.f.project.conv.weight"]) for _ in range(2)]
    dist.all_gather(everyones, p)
    assert torch.equal(*everyones)

    ddp = MMDistributedDataParallel(Trained(), broadcast_buffers=False)
    before = models.weights(ddp)
    what = "loss is nan" if dist.get_rank() == 1 else "another process's loss is not finite"
    hook = NonFiniteLossHook(action="stop")
    with (
        mock.patch("tests.training.test_non_finite_loss.NonFiniteLossHook", return_value=hook),
        pytest.raises(NonFiniteLossError, match=rf"{what}.* at step 1: training stopped"),
    ):
        train(ddp, OptimWrapper(models.sgd(ddp)), spoiled[1:])
    models.assert_near(models.weights(ddp), before, 0.0)
