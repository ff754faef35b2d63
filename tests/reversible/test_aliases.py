"""Edges that return their input's memory, or hand on the gradient that they got: nobody's numbers change in place."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from revbifpn.reversible import RevBlock, ReversibleSequential, RevSilo, StreamWise
from revbifpn.reversible.readout import ReadOut

SHAPE = (2, 4, 3, 3)


class View(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape)


class Shifted(nn.Module):
    """Input and parameter get the same gradient tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, *SHAPE[1:]).expand(SHAPE).clone())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Within(Shifted):
    """The same, with a gradient that is the edge's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Sums(nn.Module):
    """All entries of the input's gradient lie in one place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3), keepdim=True).expand_as(x)


class Constant(Shifted):
    """A parameter itself, whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return self.shift


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


EDGES: list[Callable[[], nn.Module]] = [nn.Identity, View, Shifted, Within, Sums, Constant, Halved]


def random_model(chance: random.Random) -> tuple[ReversibleSequential, ReadOut | None]:
    """Silos of one to four streams and blocks, and in half of the cases a neck."""

    made: list[nn.Module] = []

    def edge() -> nn.Module:
        """A new one, or one that is in another place too."""
        if not made or chance.random() < 0.8:
            made.append(nn.Sequential(*(chance.choice(EDGES)() for _ in range(chance.randint(1, 2)))))
            return made[-1]
        return chance.choice(made)

    layers: list[StreamWise | RevSilo] = []
    count = chance.randint(1, 4)
    for _ in range(chance.randint(1, 3)):
        outputs = chance.randint(max(2, count), 4)
        pairs = [(i, j) for i in range(outputs) for j in range(outputs) if (i < count and i < j) or i > j]
        chosen = {pair for pair in pairs if chance.random() < 0.6} | {(0, j) for j in range(max(1, count), outputs)}
        chosen |= {(0, outputs - 1)} if count == outputs else set()
        down = {(i, j): edge() for i, j in sorted(chosen) if i < j}
        layers.append(RevSilo(down, {(i, j): edge() for i, j in sorted(chosen) if i > j}, num_inputs=count))
        count = outputs
        if chance.random() < 0.3:
            # A block's halves are of 2 channels, which the edge with a parameter does not fit.
            layers.append(StreamWise([RevBlock(nn.Identity(), View())] for _ in range(count)))
    readout = ReadOut([(i, edge().double()) for i in range(count) for _ in range(chance.randint(0, 2))], count)
    with_readout = readout.modules and chance.random() < 0.5
    return ReversibleSequential(*layers, exact=False).double(), readout if with_readout else None


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("seed", range(100))
def test_gradients_are_autograds_and_nothing_is_overwritten(seed: int, reversible: bool) -> None:
    """Stored mode with a graph of its gradients leaves everything to autograd."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    model, readout = random_model(chance)
    num_inputs = next(layer for layer in model if isinstance(layer, RevSilo)).num_inputs
    images = [torch.randn(SHAPE, dtype=torch.float64, requires_grad=True) for _ in range(num_inputs)]
    wanted = [
        *images,
        *model.parameters(),
        *(p for _, module in (readout.modules if readout else ()) for p in module.parameters()),
    ]

    model.reversible = False
    outputs = model(*images, readout=readout)
    used = [index for index in range(len(outputs)) if chance.random() < 0.6] or [chance.randrange(len(outputs))]
    weights = [torch.randn(SHAPE, dtype=torch.float64) for _ in used]

    def pull(create_graph: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        outputs = model(*images, readout=readout)
        chosen = [outputs[index] for index in used]
        return outputs, torch.autograd.grad(chosen, wanted, weights, create_graph=create_graph, allow_unused=True)

    outputs, expected = pull(create_graph=True)
    before = [tensor.detach().clone() for tensor in (*wanted, *weights, *outputs)]
    model.reversible = reversible
    outputs, found = pull(create_graph=False)
    for tensor, value in zip((*wanted, *weights, *outputs), before, strict=True):
        torch.testing.assert_close(tensor.detach(), value, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            # Rebuilt values have no influence: all edges are linear.
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
