"""What each of two processes does: trains sparse with DDP on data of its own; started by ``test_distributed``.

The processes begin with other seeds and would have other masks, if the first one's were not everybody's.
"""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from revbifpn.sparsity import SparseTraining
from tests.sparsity.common import batch, small_network


def everyones(tensor: Tensor) -> list[Tensor]:
    tensor = tensor.detach().to(torch.float32).contiguous()
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return gathered


def main() -> None:
    rank, world_size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    torch.set_num_threads(1)
    for method in ("static", "set", "rigl", "gradual"):
        model = DistributedDataParallel(small_network().to(memory_format=torch.channels_last))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        sparse = SparseTraining(model, optimizer, 0.8, method, total_steps=12, update_every=2, seed=rank)
        assert set(sparse.masks) == {"conv1.weight", "conv2.weight"}  # the network's names, not DDP's
        for step in range(6):
            for part in range(2):  # accumulated: exchanged with the second
                images, labels = batch(100 * step + 10 * part + rank)
                if part == 0:
                    with model.no_sync():
                        F.cross_entropy(model(images), labels).backward()
                else:
                    F.cross_entropy(model(images), labels).backward()
            sparse.step(max_norm=1.0)
            optimizer.zero_grad()
            for name, weight in sparse.weights.items():
                first, second = everyones(sparse.masks[name])
                assert torch.equal(first, second), (method, step, name)
                first, second = everyones(weight)
                assert torch.equal(first, second), (method, step, name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
