"""Lean forms: what the plain form computes, with less kept; chosen where they serve, refused where anything is unusual."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from revbifpn.models.blocks import ConvNormAct, MBConv, UpEdge
from revbifpn.reversible import (
    ConvNorm,
    ReversibleSequential,
    RevSilo,
    forms,
    kernels,
    lean_chain,
    recompute,
    register_lean_form,
    set_exact,
    set_reversible,
)
from revbifpn.reversible.forms import lean_form
from revbifpn.reversible.plain import PlainForm

F64 = {"rtol": 1e-9, "atol": 1e-11}

EDGES = {
    "depthwise": lambda: MBConv(6, 6, 3),
    "squeeze_excite": lambda: MBConv(6, 6, 5, se_ratio=0.25),
    "expand": lambda: MBConv(6, 6, 5, expand=2),
    "expand_squeeze_excite": lambda: MBConv(6, 6, 3, expand=2, se_ratio=0.25),
    "stochastic_depth": lambda: MBConv(6, 6, 3, se_ratio=0.25, drop_path=0.5),
}
CROSSING = {  # (down edge, up edge) between streams of 6 channels and 8 channels at half the size
    "silo": lambda: (MBConv(6, 8, 3, 2, 1, 0.25), UpEdge(MBConv(8, 6, 3, 1, 1, 0.25), 2)),
    "silo_expand": lambda: (MBConv(6, 8, 3, 2, 2, 0.0, 0.3), UpEdge(MBConv(8, 6, 3, 1, 2, 0.25, 0.3), 2)),
}


@contextmanager
def plain_forms_only() -> Iterator[None]:
    lean = dict(forms._LEAN)
    forms._LEAN.clear()
    try:
        yield
    finally:
        forms._LEAN.update(lean)


@pytest.fixture(params=["whole", "chunks"])
def chunking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of a replay, whatever the size of the tensors."""
    size = 1 if request.param == "chunks" else 2**40
    monkeypatch.setattr(kernels, "chunk_bytes", lambda device, frugal, room: size)
    return request.param


def two_streams(dtype: torch.dtype = torch.float64, batch: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, channels, size, size, generator=generator, dtype=torch.float64).to(dtype)
        for channels, size in ((6, 8), (8, 4))
    ]


def jitter(model: nn.Module) -> nn.Module:
    """Parameters and statistics away from their initial ones and zeros."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("running_mean"))):
            tensor.add_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype) * 0.2)
    return model


def gradients(model: nn.Module, x: list[Tensor]) -> list[Tensor | None]:
    model.zero_grad()
    leaves = [tensor.clone().requires_grad_() for tensor in x]
    torch.manual_seed(5)
    outputs = model(*leaves)
    sum((i + 1) * output.sin().sum() for i, output in enumerate(outputs)).backward()
    return [*(leaf.grad for leaf in leaves), *(p.grad for p in model.parameters())]


def assert_lean_equals_plain(model: nn.Module, x: list[Tensor], **tolerance: float) -> None:
    reference = copy.deepcopy(model)
    ours = gradients(model, x)
    with plain_forms_only():
        theirs = gradients(reference, x)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, **tolerance)
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def block_model(name: str) -> ReversibleSequential:
    torch.manual_seed(0)
    edges = [RevSilo({(0, 1): EDGES[name]()}, {(1, 0): EDGES[name]()}) for _ in range(2)]
    return jitter(ReversibleSequential(*edges)).train()  # type: ignore[return-value]


def silo_model(name: str) -> ReversibleSequential:
    torch.manual_seed(0)
    layers = []
    for _ in range(2):
        down, up = CROSSING[name]()
        layers.append(RevSilo({(0, 1): down}, {(1, 0): up}))
    return jitter(ReversibleSequential(*layers)).train()  # type: ignore[return-value]


def model_and_streams(name: str) -> tuple[ReversibleSequential, list[Tensor]]:
    if name in CROSSING:
        return silo_model(name).double(), two_streams()
    x = two_streams()[0]
    return block_model(name).double(), [x, x.flip(0)]


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("name", [*EDGES, *CROSSING])
def test_gradients_are_the_plain_forms(name: str, reversible: bool) -> None:
    model, x = model_and_streams(name)
    set_reversible(model, reversible)
    assert all(layer.is_lean() for layer in model)
    assert_lean_equals_plain(model, x, **F64)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("name", ["squeeze_excite", "silo_expand"])
def test_float32(name: str) -> None:
    """Rounding of float32 through two layers, relative to gradients of order one."""
    model, x = model_and_streams(name)
    assert_lean_equals_plain(model.float(), [s.float() for s in x], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("name", [*EDGES, *CROSSING])
def test_gradcheck(name: str) -> None:
    model, x = model_and_streams(name)
    params = list(model.parameters())
    x = [s[:2].clone().requires_grad_() for s in x]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        return tuple(output.sin() for output in model(*tensors[: len(x)]))

    assert torch.autograd.gradcheck(run, (*x, *params), fast_mode=True)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("name", ["expand_squeeze_excite", "silo"])
def test_norms_in_eval_mode(name: str) -> None:
    model, x = model_and_streams(name)
    assert_lean_equals_plain(model.eval(), x, **F64)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("frozen", [r"norm", r"expand", r"se", r"down", r"depthwise.conv", r""])
def test_frozen_parameters_get_none(frozen: str) -> None:
    import re

    model, x = model_and_streams("expand_squeeze_excite")
    for name, param in model.named_parameters():
        param.requires_grad_(re.search(frozen, name) is None or (frozen == "" and "up" in name))
    assert_lean_equals_plain(model, x, **F64)
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["squeeze_excite", "expand", "stochastic_depth", "silo", "silo_expand"])
def test_exact_is_stored_bit_for_bit(name: str, bf16: bool) -> None:
    model, x = model_and_streams(name)
    model, x = set_exact(model.float()), [s.float() for s in x]  # type: ignore[assignment]
    stored = set_reversible(copy.deepcopy(model), False)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        ours, theirs = gradients(model, x), gradients(stored, x)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))  # type: ignore[arg-type]


class TwiceDifferentiableGate(nn.Module):
    """Hardsigmoid; torch's own has no derivative of its derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


@pytest.mark.parametrize("name", ["squeeze_excite", "silo_expand"])
def test_double_backward_in_stored_mode(name: str) -> None:
    model, x = model_and_streams(name)
    set_reversible(model, False)
    reference = copy.deepcopy(model)
    for module in list(reference.modules()):
        if isinstance(getattr(module, "gate", None), nn.Hardsigmoid):
            module.gate = TwiceDifferentiableGate()

    def penalty(m: nn.Module) -> list[Tensor]:
        leaves = [s.clone().requires_grad_() for s in x]
        torch.manual_seed(5)
        loss = sum(output.sin().sum() for output in m(*leaves))
        grads = torch.autograd.grad(loss, leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in grads), list(m.parameters()), allow_unused=True))

    ours = penalty(model)
    with plain_forms_only():
        theirs = penalty(reference)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # torch takes 1 / 6 in float32


def test_stored_lean_keeps_one_tensor_a_convolution() -> None:
    model, x = model_and_streams("expand_squeeze_excite")
    set_reversible(model, False)
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers(), *x)}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own and tensor.ndim == 4:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(*x)
    unit = x[0].numel()
    convolutions = 4 * (2 + 2 + 1)  # four edges; expand and depthwise are twice as wide
    streams = 2 * 2  # what the two layers return
    assert sum(sizes.values()) <= (convolutions + streams) * unit


UNUSUAL = {
    "forward hook": lambda edge: edge.depthwise.register_forward_hook(lambda *_: None),
    "pre hook": lambda edge: edge.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda edge: edge.project.conv.register_full_backward_hook(lambda *_: None),
    "weight norm": lambda edge: nn.utils.parametrizations.weight_norm(edge.project.conv),
    "another norm": lambda edge: setattr(edge.project, "norm", nn.GroupNorm(2, 6)),
    "sync norm": lambda edge: setattr(edge.project, "norm", nn.SyncBatchNorm(6)),
    "another activation": lambda edge: setattr(edge.depthwise, "act", nn.GELU()),
    "cumulative statistics": lambda edge: setattr(edge.depthwise.norm, "momentum", None),
    "padding mode": lambda edge: setattr(edge.depthwise.conv, "padding_mode", "reflect"),
    "one more part": lambda edge: edge.append(nn.Identity()),
    "replaced forward": lambda edge: setattr(edge, "forward", lambda x: x),
    "tied weights": lambda edge: setattr(edge.project.norm, "weight", edge.depthwise.norm.weight),
    "compiled": lambda edge: edge.compile(),
    "subclass": lambda edge: setattr(edge.depthwise, "norm", type("Norm", (nn.BatchNorm2d,), {})(6)),
}


@pytest.mark.parametrize("change", UNUSUAL)
def test_whatever_is_unusual_takes_the_plain_form(change: str) -> None:
    edge = MBConv(6, 6, 3, se_ratio=0.25)
    layer = RevSilo({(0, 1): edge}, {(1, 0): MBConv(6, 6, 3)})
    assert layer.is_lean()
    UNUSUAL[change](edge)
    assert not layer.is_lean()
    assert all(isinstance(form, PlainForm) for form in layer.plan().forms)


def test_the_plan_is_kept_while_nothing_changes() -> None:
    layer = RevSilo({(0, 1): MBConv(6, 6, 3)}, {(1, 0): MBConv(6, 6, 3)})
    plan = layer.plan()
    assert layer.plan() is plan
    layer.eval()
    assert layer.plan() is not plan
    plan = layer.plan()
    layer.down["0"]["1"].requires_grad_(False)
    assert layer.plan() is not plan


def test_a_lean_form_for_a_block_of_ones_own() -> None:
    """The example of the documentation."""

    class Block(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())

    register_lean_form(Block, lambda block: lean_chain(block, [ConvNorm(block[0], block[1], block[2])]))
    try:
        torch.manual_seed(0)
        model = jitter(ReversibleSequential(RevSilo({(0, 1): Block()}, {(1, 0): Block()}))).double()
        assert model[0].is_lean()
        x = two_streams()[0]
        assert_lean_equals_plain(model, [x, x.flip(0)], **F64)
    finally:
        forms._LEAN.pop(Block)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("make", [lambda: MBConv(6, 8, 5, 2, 2, 0.25), lambda: ConvNormAct(6, 16), lambda: MBConv(6, 6, 5)])
def test_recomputed_modules(make: object, store: bool) -> None:
    torch.manual_seed(0)
    module = jitter(make()).double().train()  # type: ignore[operator]
    reference = copy.deepcopy(module)
    x, y = (two_streams()[0].requires_grad_() for _ in range(2))
    assert not isinstance(lean_form(module), PlainForm)
    recompute(module, x, store=store).sin().sum().backward()
    reference(y).sin().sum().backward()
    pairs = [(x.grad, y.grad), *((a.grad, b.grad) for a, b in zip(module.parameters(), reference.parameters(), strict=True))]
    for a, b in pairs:
        torch.testing.assert_close(a, b, **F64)


def test_stochastic_depth_draws_as_timm_does() -> None:
    model, x = model_and_streams("stochastic_depth")
    torch.manual_seed(5)
    ours = model(*x)
    with torch.no_grad():
        torch.manual_seed(5)
        theirs = model(*x)
    assert any(isinstance(m, DropPath) for m in model.modules())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **F64)
