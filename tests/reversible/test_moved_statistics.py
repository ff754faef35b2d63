"""A forward pass in eval mode, a training pass that moves the running statistics, then the backward pass of the first."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from revbifpn.models import RevBiFPN, RevBiFPNPyramid
from revbifpn.reversible import ReversibleSequential, RevSilo, recompute, set_exact, set_reversible

from .common import Edge, pyramid, streams
from .test_lean import jitter, model_and_streams, plain_forms_only

# The same network in float64; rebuilt activations differ in the last bits.
F64 = {"rtol": 1e-9, "atol": 1e-11}

MODELS: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {
    "silos of MBConv": lambda: model_and_streams("squeeze_excite"),
    "another norm": lambda: (_with_instance_norm(pyramid(norm=True)).double(), streams(dtype=torch.float64)),
    "classifier": lambda: (RevBiFPN("s0", num_classes=3).double(), [torch.randn(2, 3, 64, 64, dtype=torch.float64)]),
    "pyramid": lambda: (RevBiFPNPyramid("s0").double(), [torch.randn(2, 3, 64, 64, dtype=torch.float64)]),
    "recomputed module": lambda: (_Recomputed().double(), streams(dtype=torch.float64)),
}
MODES: dict[str, Callable[[nn.Module], object]] = {
    "reversible": lambda model: set_exact(model, False),
    "exact": set_exact,
    "stored": lambda model: set_reversible(model, False),
}


def _with_instance_norm(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        if isinstance(module, Edge):
            module[1] = nn.InstanceNorm2d(module[1].num_features, track_running_stats=True)
    return model


class _Recomputed(nn.Module):
    """A plain module that runs again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = Edge(0, 1, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        return recompute(self.edge, x)


def loss_of(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.stack([output.sin().sum() for output in outputs]).sum()


def forms(plain: bool) -> AbstractContextManager[object]:
    return plain_forms_only() if plain else nullcontext()


LEAN = ("silos of MBConv", "classifier", "pyramid")
# Plain edges are torch's own in stored mode, whose batch norm takes the moved statistics.
CASES = [(name, mode, True) for name in MODELS for mode in ("reversible", "exact")]
CASES += [(name, mode, False) for name in LEAN for mode in MODES]


@pytest.mark.parametrize(("name", "mode", "plain"), CASES)
def test_the_replay_has_the_statistics_of_its_forward_pass(name: str, mode: str, plain: bool) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    MODES[mode](jitter(model).eval())
    reference = copy.deepcopy(model)
    with forms(plain):
        loss = loss_of(model(*x))
        before = copy.deepcopy(dict(model.named_buffers()))
        with torch.no_grad():
            model.train()(*[s * 3 + 1 for s in x])
        unmoved = [name for name, buffer in model.named_buffers() if torch.equal(buffer, before[name])]
        loss.backward()
        loss_of(reference(*x)).backward()
    assert not [name for name in unmoved if "running" in name]
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, **F64)


def test_another_buffer_that_changed_is_refused_by_name() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.register_buffer("mask", torch.ones(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.mask

    edge = Masked().eval()
    model = ReversibleSequential(RevSilo({(0, 1): edge}, {(1, 0): nn.Conv2d(4, 4, 1)}))
    x = streams()[0]
    loss = loss_of(model(x, x.clone()))
    edge.mask[0] = 0
    with pytest.raises(RuntimeError, match="buffer 'mask' of Masked was changed between forward and backward") as raised:
        loss.backward()
    assert "edge down[0][1] of layer 0 (RevSilo)" in "".join(raised.value.__notes__)
