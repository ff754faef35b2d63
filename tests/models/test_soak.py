"""Many steps in one process: memory stays where it is, exact mode stays exact, and nothing is said twice."""

from __future__ import annotations

import copy
import gc
import os
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from revbifpn.models import VARIANTS, RevBiFPN
from revbifpn.reversible import set_reversible
from tests.networks import SMALL

#: (steps, steps before memory is looked at, pixels): in the default suite, and with --long.
SHORT, LONG = (40, 15, 32), (500, 50, 64)
#: Bytes a step that resident memory may grow. In the long form one small tensor that is kept would be seen; pages that
#: the allocator takes once and keeps count for more in the short form.
SLOPE = {SHORT: 256 * 1024, LONG: 4 * 1024}


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def slope(values: list[float]) -> float:
    """Of the line through the values with the least squares of distances."""
    y = torch.tensor(values, dtype=torch.float64)
    x = torch.arange(len(values), dtype=torch.float64)
    x -= x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)  # the same masks of dropout and stochastic depth in both modes
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=seed % 4 == 0):
        loss = nn.functional.cross_entropy(model(images).float(), labels)
    loss.backward()
    # Batch norms of two values have gradients of 1e5: without this the streams would leave the exact range, and be reported.
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def test_many_steps(long: bool) -> None:
    """S0 (a shallow one in the short form) with dropout, in float32 and now and then bfloat16, evaluated in between.

    The same model in stored mode has the same losses and weights.
    """
    steps, warm_up, size = form = LONG if long else SHORT
    torch.manual_seed(0)
    variant = VARIANTS["s0"] if long else SMALL
    model = RevBiFPN(variant, num_classes=5, drop_rate=0.2, drop_path_rate=0.2, exact=True).train()
    models = model, set_reversible(copy.deepcopy(model), False)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in models]
    generator = torch.Generator().manual_seed(0)
    memory, objects = [], []
    gc.collect()
    gc.freeze()  # what other tests have left is no concern of this one, and takes time to count
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(steps):
            images = torch.randn(2, 3, size, size, generator=generator)
            labels = torch.randint(5, (2,), generator=generator)
            losses = [train_step(m, o, images, labels, step) for m, o in zip(models, optimizers, strict=True)]
            assert losses[0].isfinite()
            assert torch.equal(*losses), f"step {step}"
            if step % 10 == 0:
                with torch.no_grad():
                    model.eval()(images)
                model.train()
            if step >= warm_up:
                gc.collect()
                memory.append(float(resident()))
                objects.append(float(len(gc.get_objects())))
    gc.unfreeze()
    ours, theirs = (m.state_dict() for m in models)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    again = {text: count for text, count in Counter((w.category, str(w.message)) for w in said).items() if count > 1}
    assert not again
    print(f"{slope(memory):.0f} bytes and {slope(objects):.2f} objects a step")
    assert slope(memory) < SLOPE[form]
    # Objects are counted exactly: the lists above hold floats, which are none to the collector, and the warnings are few.
    assert slope(objects) < 0.5
