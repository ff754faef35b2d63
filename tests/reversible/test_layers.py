"""Layers: equations, inverses, gradients, and errors for wrong input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from revbifpn.reversible import RevBlock, ReversibleSequential, RevSilo, SpaceToDepth, StreamWise
from revbifpn.reversible.memory_format import MemoryFormat
from revbifpn.reversible.streams import memory_format_of

from .common import CHANNELS, Edge, blocks, loss_of, silo, streams

# float64 sums of a dozen terms of order one: a few units in the last place.
F64 = {"rtol": 1e-12, "atol": 1e-12}


def test_silo_computes_the_papers_equations() -> None:
    layer = silo(3, 3).double()
    x = streams(3, dtype=torch.float64)
    edge = {(c.source, c.target): c.edge for c in layer.couplings()}
    y = [x[j] + sum(edge[i, j](x[i]) for i in range(j)) if j else x[0] for j in range(3)]
    z = [y[j] + sum((edge[i, j](y[i]) for i in range(j + 1, 3)), torch.zeros(())) for j in range(3)]
    for ours, expected in zip(layer(*x), z, strict=True):
        torch.testing.assert_close(ours, expected, **F64)


def test_silo_adds_a_stream_from_its_down_edges_alone() -> None:
    layer = silo(2, 3).double()
    x = streams(2, dtype=torch.float64)
    edge = {(c.source, c.target): c.edge for c in layer.couplings()}
    created = edge[0, 2](x[0]) + edge[1, 2](x[1])
    outputs = layer(*x)
    torch.testing.assert_close(outputs[2], created, **F64)
    assert len(layer.inverse(*outputs)) == 2


def test_block_computes_the_coupling_on_contiguous_halves() -> None:
    f, g = Edge(0, 0, channels=(2,)).double(), Edge(0, 0, channels=(2,)).double()
    (x,) = streams(1, dtype=torch.float64)
    (y,) = RevBlock(f, g)(x)
    y1 = x[:, 2:] + f(x[:, :2])
    torch.testing.assert_close(y, torch.cat([x[:, :2] + g(y1), y1], dim=1), **F64)


def test_space_to_depth_orders_channels_by_row_column_and_channel() -> None:
    x = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    (y,) = SpaceToDepth(4)(x)
    for row, column, channel in ((0, 0, 0), (0, 1, 2), (3, 2, 1)):
        expected = x[:, channel, row::4, column::4]
        assert torch.equal(y[:, (row * 4 + column) * 3 + channel], expected)


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("choice", ["auto", "keep", "channels_last", "contiguous"])
@pytest.mark.parametrize("came_in", FORMATS)
def test_space_to_depth_in_every_memory_format(choice: MemoryFormat, came_in: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    (expected,) = SpaceToDepth(4)(x)
    (y,) = SpaceToDepth(4, choice)(x.contiguous(memory_format=FORMATS[came_in]))
    assert torch.equal(y, expected)
    gives = {"auto": "channels_last", "keep": came_in}.get(choice, choice)  # "auto" on a CPU
    assert memory_format_of(y) == FORMATS[gives]
    (back,) = SpaceToDepth(4, choice).inverse(y)
    assert torch.equal(back, x)
    assert memory_format_of(back) == FORMATS[gives]


def test_space_to_depth_refuses_an_unknown_memory_format() -> None:
    with pytest.raises(ValueError, match="memory_format must be one of 'auto', 'keep'.*, got 'nhwc'"):
        SpaceToDepth(4, "nhwc")  # type: ignore[arg-type]


LAYERS = {
    "space_to_depth": (lambda: SpaceToDepth(4), 1),
    "block": (lambda: RevBlock(Edge(0, 0, channels=(2,)), Edge(0, 0, channels=(2,))), 1),
    "stream_wise": (lambda: blocks(3), 3),
    "stream_wise_with_an_empty_chain": (
        lambda: StreamWise([[], [RevBlock(Edge(0, 0, channels=(3,)), Edge(0, 0, channels=(3,)))]]),
        2,
    ),
    "silo": (lambda: silo(3, 3), 3),
    "silo_adding_a_stream": (lambda: silo(2, 3), 2),
    "silo_without_up_edges": (lambda: RevSilo({(0, 1): Edge(0, 1)}, {}), 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_inverse_returns_the_inputs(name: str) -> None:
    make, count = LAYERS[name]
    layer = make().double()
    x = streams(count, dtype=torch.float64)
    rebuilt = layer.inverse(*layer(*x))
    assert len(rebuilt) == len(x)
    for ours, original in zip(rebuilt, x, strict=True):
        torch.testing.assert_close(ours, original, **F64)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name: str) -> None:
    """Numerical derivatives of inputs and parameters, in float64 (torch's default tolerances)."""
    make, count = LAYERS[name]
    torch.manual_seed(0)
    model = ReversibleSequential(make()).double()
    x = [s[:1].clone().requires_grad_() for s in streams(count, dtype=torch.float64)]
    params = [p for p in model.parameters() if p.requires_grad]

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(output.sin() for output in model(*tensors[:count]))

    assert torch.autograd.gradcheck(run, (*x, *params), fast_mode=True)


@pytest.mark.parametrize("used", [[0], [2], [0, 1]])
def test_gradcheck_with_unused_outputs(used: list[int]) -> None:
    torch.manual_seed(0)
    model = ReversibleSequential(blocks(2), silo(2, 3), blocks(3), silo(3, 3)).double()
    x = [s[:1].clone().requires_grad_() for s in streams(2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *t: tuple(model(*t)[i] for i in used), x, fast_mode=True)


def test_gradcheck_with_frozen_edges() -> None:
    torch.manual_seed(0)
    model = ReversibleSequential(blocks(2), silo(2, 3), silo(3, 3)).double()
    model[1].down["0"]["1"].requires_grad_(False)
    model[2].up["2"]["0"].requires_grad_(False)
    x = [s[:1].clone().requires_grad_() for s in streams(2, dtype=torch.float64)]
    params = [p for p in model.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda *t: model(*t[:2]), (*x, *params), fast_mode=True)
    loss_of(model(*x)).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_edges_are_named_by_direction_and_streams() -> None:
    names = {name.rsplit(".", 2)[0] for name, _ in silo(2, 3).named_parameters()}
    assert names == {"down.0.1", "down.0.2", "down.1.2", "up.1.0", "up.2.0", "up.2.1"}
    assert [c.name for c in silo(2, 2).couplings()] == ["down[0][1]", "up[1][0]"]


def test_constructors_leave_the_callers_mappings_alone() -> None:
    down, up = {(0, 2): Edge(0, 2), (0, 1): Edge(0, 1)}, {(1, 0): Edge(1, 0)}
    RevSilo(down, up)
    assert list(down) == [(0, 2), (0, 1)]
    assert list(up) == [(1, 0)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RevSilo({}, {}), "at least one edge"),
        (lambda: RevSilo({(1, 0): nn.Identity()}, {}), r"down edges .* got \[\(1, 0\)\]"),
        (lambda: RevSilo({(0, 1): nn.Identity()}, {(0, 1): nn.Identity()}), r"up edges .* got \[\(0, 1\)\]"),
        (lambda: RevSilo({(0, 1): nn.Identity()}, {(2, 0): nn.Identity()}, num_inputs=2), r"stream 2 is created"),
        (
            lambda: RevSilo({(0, 1): nn.Identity(), (1, 2): nn.Identity()}, {}, num_inputs=1),
            "down edges read input streams, so their source must be below 1",
        ),
        (lambda: RevSilo({(0, 1): nn.Identity()}, {}, num_inputs=5), r"num_inputs must be in 1..2, got 5"),
        (lambda: ReversibleSequential(nn.ReLU()), "layer 0 is ReLU, not a ReversibleLayer"),  # type: ignore[arg-type]
        (lambda: ReversibleSequential(blocks(1), exact=True, exact_bits=30), "exact_bits must be in 1..22.*got 30"),
    ],
)
def test_wrong_construction_is_refused(make: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()  # type: ignore[operator]


def test_wrong_number_of_streams_is_named() -> None:
    with pytest.raises(ValueError, match="RevSilo: expected 3 streams, got 2"):
        silo(3, 3)(*streams(2))
    with pytest.raises(ValueError, match=r"RevSilo.inverse: expected 3 streams, got 2"):
        silo(2, 3).inverse(*streams(2))
    with pytest.raises(ValueError, match="StreamWise: expected 2 streams, got 3"):
        blocks(2)(*streams(3))


def test_wrong_channels_name_the_edge() -> None:
    with pytest.raises(RuntimeError, match="expected input.* to have 4 channels, but got 5") as caught:
        ReversibleSequential(silo(2, 2))(torch.randn(1, 5, 8, 8), torch.randn(1, 6, 4, 4))
    assert any("edge down[0][1] of layer 0 (RevSilo)" in note for note in caught.value.__notes__)
    with pytest.raises(
        ValueError, match=r"edge down\[0\]\[1\] returned shape \(1, 6, 4, 4\), its target stream has \(1, 1, 4, 4\)"
    ):
        silo(2, 2)(torch.randn(1, CHANNELS[0], 8, 8), torch.randn(1, 1, 4, 4))
    with pytest.raises(ValueError, match="must be even to be split in halves, got 3"):
        blocks(1)(torch.randn(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"SpaceToDepth\(4\): height and width must be multiples of 4, got 10x8"):
        SpaceToDepth(4)(torch.randn(1, 3, 10, 8))
    with pytest.raises(ValueError, match=r"SpaceToDepth\(4\).inverse: channels must be a multiple of 16, got 24"):
        SpaceToDepth(4).inverse(torch.randn(1, 24, 2, 2))
