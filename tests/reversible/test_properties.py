"""Random chains of blocks and silos: inverse, gradients against stored mode, and exact mode equal or reported."""

from __future__ import annotations

import copy
import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from revbifpn.reversible import ExactReversalWarning, RevBlock, ReversibleSequential, RevSilo, StreamWise, set_reversible
from revbifpn.reversible.exact import exact_limit, round_to_grid

EXAMPLES, LONG = 500, 10_000  # of all properties together
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(1, channels),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
}
#: Of the difference's norm to the gradients' norm. Rebuilt values differ by some roundings of the largest sum on their way
#: (2 ** 10 here), which norms of few values amplify, by up to 1 / sqrt(eps) = 316 each. A lost or doubled term changes 1e-2.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}


class Edge(nn.Sequential):
    """Values of at most ``gain``; resampled by ``2 ** (j - i)``."""

    def __init__(self, channels: tuple[int, int], scale: int, case: Case) -> None:
        before, after = channels
        layers: list[nn.Module] = [nn.Conv2d(before, after, 3, stride=max(1, 2**scale), padding=1), NORMS[case.norm](after)]
        layers += [nn.Tanh(), Gain(2.0**case.gain)]
        if case.dropout:
            layers.insert(1, nn.Dropout(0.3))
        if scale < 0:
            layers.append(nn.Upsample(scale_factor=2**-scale, mode="nearest"))
        super().__init__(*layers)


class Gain(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@dataclass(frozen=True)
class Case:
    """A chain and what comes in.

    Attributes:
        seed: of weights, images, and of which edges and outputs are left out and which parameters are frozen.
        layers: "blocks", "silo", or "wider" for a silo that creates a stream, as long as there are less than three.
        magnitude, gain: powers of 2: of the input, and of what an edge adds.
        holes: how likely it is that an edge or an output is left out.
        frozen: how likely it is that a parameter is frozen.
        image: whether the input needs a gradient.
    """

    seed: int
    layers: list[str]
    num_inputs: int
    channels: tuple[int, int, int]
    norm: str
    training: bool
    dropout: bool
    dtype: torch.dtype
    magnitude: int
    gain: int
    bits: int
    holes: float
    frozen: float
    image: bool
    autocast: bool


def cases(dtypes: tuple[torch.dtype, ...], magnitudes: st.SearchStrategy[int], gains: st.SearchStrategy[int]) -> Any:
    chances = st.sampled_from([0.0, 0.0, 0.3])
    return st.builds(
        Case,
        seed=st.integers(0, 2**16),
        layers=st.lists(st.sampled_from(["blocks", "silo", "wider"]), min_size=1, max_size=4),
        num_inputs=st.integers(1, 3),
        channels=st.tuples(*[st.sampled_from([2, 4, 6])] * 3),
        norm=st.sampled_from(list(NORMS)),
        training=st.booleans(),
        dropout=st.booleans(),
        dtype=st.sampled_from(dtypes),
        magnitude=magnitudes,
        gain=gains,
        bits=st.integers(1, 22),
        holes=chances,
        frozen=chances,
        image=st.booleans(),
        autocast=st.booleans(),
    )


def chain(case: Case) -> ReversibleSequential:
    """The layers, without settings."""
    torch.manual_seed(case.seed)
    chance = random.Random(case.seed)
    width, count = case.channels, case.num_inputs
    layers: list[StreamWise | RevSilo] = []
    for kind in case.layers:
        wider = kind == "wider" and count < 3
        if kind == "blocks" or (count == 1 and not wider):
            halves = [width[i] // 2 for i in range(count)]
            made = [
                [RevBlock(*(Edge((c, c), 0, case) for _ in range(2))) for _ in range(chance.randint(0, 2))] for c in halves
            ]
            made[0] = made[0] or [RevBlock(*(Edge((halves[0], halves[0]), 0, case) for _ in range(2)))]
            layers.append(StreamWise(made))
            continue
        outputs = count + wider
        needed = {(outputs - 2, outputs - 1)}  # so that the coarsest stream has an edge, and a created one its source
        pairs = [
            (i, j)
            for i in range(outputs)
            for j in range(outputs)
            if i != j and (i > j or i < count) and ((i, j) in needed or chance.random() >= case.holes)
        ]
        edges = {(i, j): Edge((width[i], width[j]), j - i, case) for i, j in pairs}
        down, up = ({pair: e for pair, e in edges.items() if (pair[0] < pair[1]) == is_down} for is_down in (True, False))
        layers.append(RevSilo(down, up, num_inputs=count))
        count = outputs
    model = ReversibleSequential(*layers, exact=False).to(case.dtype).train(case.training)
    for parameter in model.parameters():
        parameter.requires_grad_(chance.random() >= case.frozen)
    return model


def images(case: Case) -> list[Tensor]:
    """The streams that come in; they need a gradient where nothing else does."""
    generator = torch.Generator().manual_seed(case.seed)
    sizes = [(2, case.channels[i], 8 >> i, 8 >> i) for i in range(case.num_inputs)]
    found = [torch.randn(size, generator=generator, dtype=torch.float64) * 2.0**case.magnitude for size in sizes]
    return [stream.to(case.dtype) for stream in found]


@dataclass
class Result:
    outputs: tuple[Tensor, ...]
    gradients: list[Tensor | None]
    buffers: list[Tensor]
    reported: list[str]


def step(model: nn.Module, case: Case) -> Result:
    """A forward and a backward pass from some of the outputs."""
    leaves = [x.requires_grad_(case.image or case.frozen > 0) for x in images(case)]
    wanted = [*(x for x in leaves if x.requires_grad), *(p for p in model.parameters() if p.requires_grad)]
    chance = random.Random(case.seed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.manual_seed(case.seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast and case.dtype == torch.float32):
            outputs = model(*leaves)
        used = {i: y for i, y in enumerate(outputs) if chance.random() >= case.holes} or dict(enumerate(outputs))
        # A stream that passes a reversible layer untouched requires a gradient, also where it does not by itself.
        used = {i: y for i, y in used.items() if y.requires_grad}
        gradients: list[Tensor | None] = [None] * len(wanted)
        if used:
            loss = torch.stack([((i + 1) * y.float().sin()).sum() for i, y in used.items()]).sum()
            gradients = list(torch.autograd.grad(loss, wanted, allow_unused=True))
    reported = [str(w.message) for w in said if issubclass(w.category, ExactReversalWarning)]
    return Result(tuple(y.detach() for y in outputs), gradients, [b.clone() for b in model.buffers()], reported)


def same(ours: Tensor | None, theirs: Tensor | None) -> bool:
    """In every bit; a NaN is like another, since half precision has some where gradients overflow."""
    if ours is None or theirs is None:
        return ours is theirs
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


def both_modes(model: ReversibleSequential, case: Case) -> tuple[Result, Result]:
    """Gradients in reversible and in stored mode; the forward passes of both have to be the same computation."""
    stored = set_reversible(copy.deepcopy(model), False)
    ours, theirs = step(model, case), step(stored, case)
    for mine, other in zip([*ours.outputs, *ours.buffers], [*theirs.outputs, *theirs.buffers], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
    assert [g is None for g in ours.gradients] == [g is None for g in theirs.gradients]
    return ours, theirs


def for_all(cases: Any, examples: int, check: Callable[[Case], None]) -> None:
    """Run ``check`` on examples that are the same in every run."""
    options: dict[str, Any] = dict(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    options |= dict(phases=[Phase.generate], report_multiple_bugs=False)  # to make an example smaller takes a minute
    settings(max_examples=examples, **options)(given(case=cases)(lambda case: check(case)))()


def test_exact_mode_is_equal_or_reported(long: bool) -> None:
    """Never silently different, however large the values are, in the input or inside of a silo, and whatever the grid is."""
    found: Counter[str] = Counter()

    def check(case: Case) -> None:
        model = chain(case)
        half = case.dtype in (torch.bfloat16, torch.float16) or (case.autocast and case.dtype == torch.float32)
        model.set_exact("auto" if half and case.seed % 2 else True, case.bits)
        ours, theirs = both_modes(model, case)
        equal = all(map(same, ours.gradients, theirs.gradients))
        assert equal or ours.reported
        assert not theirs.reported
        found["equal" if equal and not ours.reported else "reported" if equal else "different and reported"] += 1

    dtypes = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
    for_all(cases(dtypes, st.integers(-4, 24), st.integers(-2, 24)), (LONG if long else EXAMPLES) // 2, check)
    print(dict(found))
    assert found["equal"] > 20  # both ends are reached
    assert found["different and reported"] > 20


def test_ordinary_gradients_are_those_of_stored_mode(long: bool) -> None:
    def check(case: Case) -> None:
        ours, theirs = both_modes(chain(case), case)
        pairs = [(a, b) for a, b in zip(ours.gradients, theirs.gradients, strict=True) if a is not None and b is not None]
        scale = sum(b.double().square().sum() for _, b in pairs) ** 0.5
        error = sum((a.double() - b.double()).square().sum() for a, b in pairs) ** 0.5
        assert error <= TOLERANCE[case.dtype] * scale

    float64 = cases((torch.float64,), st.integers(-4, 10), st.integers(-4, 4))
    float32 = cases((torch.float32,), st.integers(-4, 1), st.integers(-4, 1)).filter(lambda case: not case.autocast)
    for_all(st.one_of(float64, float64, float32), (LONG if long else EXAMPLES) * 3 // 10, check)


def test_inverse(long: bool) -> None:
    """Exact on the grid in exact mode, and to rounding otherwise; created streams are dropped."""

    def check(case: Case) -> None:
        model, x = chain(case).eval(), images(case)
        limit = exact_limit(case.dtype, case.bits)
        most = max(float(stream.abs().max()) for stream in x) + 4 * len(case.layers) * 2.0**case.gain
        exact = most < limit
        model.set_exact(exact, case.bits)
        with torch.no_grad():
            rebuilt = model.inverse(*model(*x))
        assert len(rebuilt) == case.num_inputs
        for ours, original in zip(rebuilt, x, strict=True):
            if exact:
                assert torch.equal(ours, round_to_grid(original, case.bits))
            else:
                assert (ours - original).abs().max() <= TOLERANCE[case.dtype] * max(most, 1.0)

    both = cases((torch.float32, torch.float64), st.integers(-4, 8), st.integers(-4, 4))
    for_all(both, (LONG if long else EXAMPLES) // 5, check)
