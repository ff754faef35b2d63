"""What each of two processes does in ``test_non_finite_loss.py``: DDP with accumulated gradients, and losses that are
NaN in the first process and infinite in the second."""

from __future__ import annotations

import json
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import nn

from revbifpn.training.hooks import _average_gradients
from tests.training.test_non_finite_loss import COUNT, STEPS, TOLERANCE, Regression, batches, expected, sgd, spoil, train


def main() -> None:
    rank, world_size, store, bad_steps = sys.argv[1:]
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world_size), timeout=timedelta(seconds=60)
    )
    shares = [batches(seed=process) for process in range(int(world_size))]
    bad: list[list[int]] = json.loads(bad_steps)  # of each process
    finite = [step not in bad[int(rank)] for step in range(STEPS)]
    model = Regression()
    ddp = MMDistributedDataParallel(model)
    loss = "nan" if rank == "0" else "inf"
    train(ddp, OptimWrapper(sgd(model), accumulative_counts=COUNT), spoil(shares[int(rank)], finite, loss))

    # One process with the joined batches: the loss is a mean over images, so its gradient is the mean of both processes'.
    any_bad = {step for steps in bad for step in steps}
    reference = expected(torch.cat(shares, dim=1), [step not in any_bad for step in range(STEPS)])
    torch.testing.assert_close(model.weight.detach(), reference, rtol=0, atol=TOLERANCE)
    everyones = [torch.empty_like(reference) for _ in shares]
    dist.all_gather(everyones, model.weight.detach())
    assert torch.equal(everyones[0], everyones[1]), everyones
    average_of_parameters_not_used_everywhere(int(rank))
    dist.destroy_process_group()


def average_of_parameters_not_used_everywhere(rank: int) -> None:
    """As with DDP's ``find_unused_parameters``: no use counts as a gradient of 0, and one that nobody used has none."""
    used, by_first, by_none = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    used.grad = torch.full((3,), float(1 + rank))
    by_first.grad = torch.full((3,), 4.0) if rank == 0 else None
    _average_gradients([used, by_first, by_none])
    assert used.grad.tolist() == [1.5] * 3
    assert by_first.grad is not None
    assert by_first.grad.tolist() == [2.0] * 3
    assert by_none.grad is None


if __name__ == "__main__":
    main()
