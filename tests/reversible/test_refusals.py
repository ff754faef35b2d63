"""nn.DataParallel, torch.func's transforms, forward mode: right, or refused with what to do instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.parallel.replicate import replicate

from revbifpn.models import RevBiFPN, RevBiFPNPyramid
from revbifpn.reversible import recompute, set_exact, set_reversible

from .common import Edge, assert_same_gradients, pyramid, streams

F64 = {"rtol": 1e-10, "atol": 1e-10}


# nn.DataParallel


def replica_of(model: nn.Module) -> nn.Module:
    """What ``nn.DataParallel`` makes for a device; its broadcast, which runs on GPUs only, is a copy here."""

    def broadcast(tensors: list[Tensor], devices: list[int], detach: bool = False) -> list[list[Tensor]]:
        return [[tensor.detach() if detach else tensor.clone() for tensor in tensors] for _ in devices]

    with mock.patch("torch.nn.parallel.replicate._broadcast_coalesced_reshape", broadcast):
        (replica,) = replicate(model, [0])
    return replica


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "RevBiFPN": lambda: (RevBiFPN("s0", num_classes=3), (torch.randn(2, 3, 32, 32),)),
    "RevBiFPNPyramid": lambda: (RevBiFPNPyramid("s0"), (torch.randn(2, 3, 32, 32),)),
    "ReversibleSequential": lambda: (pyramid(), tuple(streams())),
}


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_replicas_of_data_parallel_are_refused(name: str, reversible: bool) -> None:
    model, inputs = MODELS[name]()
    replica = replica_of(set_reversible(model, reversible))
    assert not list(replica.parameters())
    with pytest.raises(RuntimeError, match=r"nn\.DataParallel.*DistributedDataParallel"):
        replica(*inputs)


def test_a_replica_of_a_recomputed_module_is_refused() -> None:
    edge = Edge(0, 0)
    recompute(edge, *streams())
    with pytest.raises(RuntimeError, match=r"Edge is a replica of nn\.DataParallel.*DistributedDataParallel"):
        recompute(replica_of(edge), *streams())


@pytest.mark.parametrize("name", MODELS)
def test_inference_in_replicas_works(name: str) -> None:
    """Without gradients they are ordinary modules, and run their own copies of the weights."""
    model, inputs = MODELS[name]()
    model.eval()
    with torch.no_grad():
        expected = model(*inputs)
        replica = replica_of(model)
        for tensors in [m.__dict__["_former_parameters"] for m in replica.modules()]:
            for tensor in tensors.values():
                tensor.mul_(1.5)
        different = replica(*inputs)
        for param in model.parameters():
            param.mul_(1.5)
        torch.testing.assert_close(different, model(*inputs), rtol=0, atol=0)
    first = (expected, different) if isinstance(expected, Tensor) else (expected[0], different[0])
    assert not torch.equal(*first)


# torch.func and forward mode


def lean_chain_of_two() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return RevBiFPN("s0", num_classes=3, drop_path_rate=0.0, drop_rate=0.0).double().eval(), torch.randn(2, 3, 32, 32).double()


CHAINS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "plain": lambda: (pyramid(norm=True).double().eval(), streams(dtype=torch.float64)[0]),
    "lean": lean_chain_of_two,
}


def loss(outputs: Any) -> Tensor:
    """In float64; every output counts differently."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(((i + 1) * output.sin().sum() for i, output in enumerate(outputs)), torch.zeros(()))


def grad(model: nn.Module, x: Tensor) -> Any:
    """Gradients of parameters by torch.func."""
    params = {name: param.detach() for name, param in model.named_parameters()}
    return torch.func.grad(lambda p: loss(torch.func.functional_call(model, p, (x,))))(params)


def vjp(model: nn.Module, x: Tensor) -> Any:
    return torch.func.vjp(lambda image: loss(model(image)), x)[1](torch.ones(()))[0]


def jvp(model: nn.Module, x: Tensor) -> Any:
    return torch.func.jvp(lambda image: loss(model(image)), (x,), (x.cos(),))[1]


def vmap(model: nn.Module, x: Tensor) -> Any:
    """Each image by itself."""
    return torch.func.vmap(lambda image: loss(model(image[None])))(x)


def per_sample_grad(model: nn.Module, x: Tensor) -> Any:
    params = {name: param.detach() for name, param in model.named_parameters()}

    def of_one(p: dict[str, Tensor], image: Tensor) -> Tensor:
        return loss(torch.func.functional_call(model, p, (image[None],)))

    return torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0))(params, x)


def dual(model: nn.Module, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(loss(model(forward_ad.make_dual(x, x.cos())))).tangent


TRANSFORMS = {f.__name__: f for f in (grad, vjp, jvp, vmap, per_sample_grad, dual)}


def by_autograd(transform: str, model: nn.Module, x: Tensor) -> Any:
    """The same by loss.backward() in reversible mode."""
    names = [name for name, _ in model.named_parameters()]

    def grads_of(images: Tensor) -> tuple[Tensor, ...]:
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad(loss(model(leaf)), [leaf, *model.parameters()])

    if transform == "vmap":
        return torch.stack([loss(model(image[None])) for image in x]).detach()
    if transform == "per_sample_grad":
        each = [grads_of(image[None])[1:] for image in x]
        return {name: torch.stack(found) for name, found in zip(names, zip(*each, strict=True), strict=True)}
    by_x, *by_params = grads_of(x)
    if transform == "grad":
        return dict(zip(names, by_params, strict=True))
    return by_x if transform == "vjp" else (by_x * x.cos()).sum()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("chain", CHAINS)
def test_transforms_are_right_in_stored_mode(chain: str, transform: str, exact: bool) -> None:
    model, x = CHAINS[chain]()
    set_exact(model, exact)
    expected = by_autograd(transform, model, x)
    found = TRANSFORMS[transform](set_reversible(model, False), x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7, check_dtype=False)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("chain", CHAINS)
def test_transforms_are_refused_in_reversible_mode(chain: str, transform: str) -> None:
    model, x = CHAINS[chain]()
    with pytest.raises(RuntimeError, match=r"transforms .* of reversible layers are not supported: set reversible=False"):
        TRANSFORMS[transform](model, x)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("transform", ["jvp", "vmap", "dual"])
@pytest.mark.parametrize("chain", CHAINS)
def test_transforms_without_gradients_are_right_in_both_modes(chain: str, transform: str, exact: bool) -> None:
    """Nothing is to be rebuilt under no_grad. In exact mode the rounding has the derivative 1 here too."""
    model, x = CHAINS[chain]()
    set_exact(model, exact)
    expected = by_autograd(transform, model, x)
    with torch.no_grad():
        found = TRANSFORMS[transform](model, x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7, check_dtype=False)


def test_a_recomputed_module_refuses_transforms_and_stores_under_them() -> None:
    edge, (x,) = Edge(0, 0).double(), streams(dtype=torch.float64)
    with pytest.raises(RuntimeError, match="a recomputed module are not supported"):
        torch.func.vjp(lambda image: recompute(edge, image), x)
    value, pull = torch.func.vjp(lambda image: recompute(edge, image, store=True), x)
    leaf = x.clone().requires_grad_()
    edge(leaf).sum().backward()
    torch.testing.assert_close(pull(torch.ones_like(value))[0], leaf.grad, **F64)


def is_grads_batched(output: Tensor, x: Tensor, factors: Tensor) -> Tensor:
    return torch.autograd.grad(output, x, factors, is_grads_batched=True)[0]


def vmap_of_grad(output: Tensor, x: Tensor, factors: Tensor) -> Tensor:
    return torch.func.vmap(lambda factor: torch.autograd.grad(output, x, factor, retain_graph=True)[0])(factors)


@pytest.mark.parametrize("batched", [is_grads_batched, vmap_of_grad])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_batch_of_backward_passes(chain: str, batched: Callable[..., Tensor]) -> None:
    """Sums in place cannot take a batch of gradients: it is refused, and works in stored mode."""
    model, x = CHAINS[chain]()
    for reversible in (True, False):
        set_reversible(model, reversible)
        leaf = x.clone().requires_grad_()
        outputs = model(leaf)
        output = outputs if isinstance(outputs, Tensor) else outputs[-1]
        factors = torch.stack([torch.ones_like(output), output.detach().cos()])
        if reversible:
            with pytest.raises(RuntimeError, match=r"several backward passes at once .*is_grads_batched.*reversible=False"):
                batched(output, leaf, factors)
        else:
            each = [torch.autograd.grad(output, leaf, factor, retain_graph=True)[0] for factor in factors]
            torch.testing.assert_close(batched(output, leaf, factors), torch.stack(each), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["reversible", "exact", "stored"])
def test_functional_call_of_a_lean_model(mode: str) -> None:
    """Gradients reach the tensors that stood in for the parameters, and only these, though backward runs after the call."""
    torch.manual_seed(0)
    model = RevBiFPN("s0", num_classes=3, drop_path_rate=0.0, drop_rate=0.0).double().train()
    set_exact(set_reversible(model, mode != "stored"), mode == "exact")
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model(x)  # with a plan of its own parameters
    state = {name: (p * 1.1).detach().requires_grad_() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    reference = copy.deepcopy(model)
    result = loss(torch.func.functional_call(model, (state, buffers), (x,)))
    found = torch.autograd.grad(result, list(state.values()))
    reference.load_state_dict({**{name: tensor.detach() for name, tensor in state.items()}, **dict(reference.named_buffers())})
    loss(reference(x)).backward()
    assert_same_gradients(list(found), [p.grad for p in reference.parameters()], **F64)
    assert all(p.grad is None for p in model.parameters())
