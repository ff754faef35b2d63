"""Derivatives that are written out, and convolutions that oneDNN is not called for, against autograd."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from revbifpn.reversible import kernels

#: float64: two ways to add up to some thousand products of order 1.
TOLERANCE = 1e-10


def test_no_module_is_the_identity() -> None:
    assert kernels.activation(None) is kernels.activation(nn.Identity()) is kernels.IDENTITY
    assert kernels.activation(nn.Tanh()) is None


@pytest.mark.parametrize("kind", [*kernels._ACTIVATIONS, nn.Identity], ids=lambda kind: kind.__name__)
def test_activations(kind: type[nn.Module]) -> None:
    act = kernels.activation(kind())
    assert act is not None
    x = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)  # past 3, where the hard ones end
    grad = torch.randn(101, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value = kind()(x)
    (expected,) = torch.autograd.grad(value, x, grad)
    torch.testing.assert_close(act.apply(x).detach(), value.detach())
    with torch.no_grad():
        torch.testing.assert_close(act.apply(x), value)
        torch.testing.assert_close(act.apply_(x.clone()), value)
        torch.testing.assert_close(act.backward(grad, x), expected)


CONVOLUTIONS = {
    "pointwise": (nn.Conv2d(6, 10, 1, bias=False), (3, 6, 4, 4)),
    "one pixel": (nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False), (3, 6, 1, 1)),
    "small depthwise": (nn.Conv2d(64, 64, 5, padding=2, groups=64, bias=False), (32, 64, 4, 4)),
    "depthwise on less than a row": (nn.Conv2d(256, 256, (7, 3), padding=(3, 1), groups=256, bias=False), (64, 256, 2, 1)),
    "strided": (nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False), (3, 6, 8, 8)),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, memory_format: torch.memory_format) -> None:
    module, shape = CONVOLUTIONS[name]
    module = module.double()
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    value: Tensor = module(x)
    grad = torch.randn_like(value)
    expected = torch.autograd.grad(value, (x, module.weight), grad)
    x = x.detach()
    torch.testing.assert_close(kernels.conv(module, x, module.weight), value, rtol=TOLERANCE, atol=TOLERANCE)
    for wants in itertools.product([False, True], repeat=2):
        found = kernels.conv_backward(module, grad, x, module.weight.detach(), *wants)
        for want, ours, theirs in zip(wants, found, expected, strict=True):
            assert (ours is not None) == want
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
