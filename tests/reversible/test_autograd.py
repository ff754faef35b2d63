"""What holds for ordinary modules under autograd holds for reversible ones."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.utils.parametrize as parametrize
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revbifpn.reversible import ReversibleSequential, recompute, set_reversible

from .common import Edge, assert_same_gradients, blocks, gradients, loss_of, pyramid, silo, streams

# Activations rebuilt in float32 differ in the last bits; through a dozen layers gradients of order one agree to 1e-4.
F32 = {"rtol": 1e-4, "atol": 1e-5}
F64 = {"rtol": 1e-10, "atol": 1e-10}


def both(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The same model in reversible and in stored mode."""
    return model, set_reversible(copy.deepcopy(model), False)


def test_gradients_are_those_of_stored_mode() -> None:
    reversible, stored = both(pyramid().double())
    x = streams(dtype=torch.float64)
    for ours, theirs in zip(gradients(reversible, x), gradients(stored, x), strict=True):
        assert_same_gradients(ours, theirs, **F64)


def test_no_activation_is_kept_between_forward_and_backward() -> None:
    """Only the last pyramid and the parameters are saved, whatever the depth."""

    def saved_bytes(depth: int) -> int:
        model = ReversibleSequential(*(silo(2, 2) for _ in range(depth)))
        params = {p.data_ptr() for p in model.parameters()}
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in params:
                saved[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(*streams(2))
        return sum(saved.values())

    assert saved_bytes(1) == saved_bytes(8) == sum(s.nbytes for s in streams(2))


def test_activations_of_the_forward_pass_are_freed() -> None:
    model = pyramid()
    inner: list[weakref.ref[Tensor]] = []
    model[2].register_forward_hook(lambda m, args, out: inner.extend(weakref.ref(o) for o in out))
    outputs = model(*streams())
    gc.collect()
    assert all(ref() is None for ref in inner)
    loss_of(outputs).backward()


def test_image_needs_no_gradient_and_gets_none() -> None:
    model = pyramid()
    (x,) = streams()
    loss_of(model(x)).backward()
    assert x.grad is None
    assert all(p.grad is not None for p in model.parameters())


def test_edge_into_the_image_stream_is_not_differentiated_towards_the_image() -> None:
    """The first edge reads the image stream alone, so its input asks for no gradient; later ones do."""
    model = pyramid()
    asked = []
    first = model[0].chains[0][0].f
    first.register_forward_hook(lambda m, args, out: asked.append(args[0].requires_grad))
    loss_of(model(*streams())).backward()
    assert asked == [False, False]


def test_grad_of_parameters_inputs_and_levels() -> None:
    reversible, stored = both(pyramid().double())
    results = []
    for model in (reversible, stored):
        x = streams(dtype=torch.float64)[0].requires_grad_()
        outputs = model(x)
        loss = loss_of(outputs)
        params = list(model.parameters())
        wanted = [params[0], params[len(params) // 2], params[-1], x, outputs[1]]
        results.append(torch.autograd.grad(loss, wanted))
        assert all(p.grad is None for p in params)
    assert_same_gradients(list(results[0]), list(results[1]), **F64)


def test_hooks_on_parameters_and_tensors_fire_once() -> None:
    model = pyramid()
    calls: list[str] = []
    for name, param in model.named_parameters():
        param.register_hook(lambda grad, name=name: calls.append(name))
    x = streams()[0].requires_grad_()
    x.register_hook(lambda grad: calls.append("x"))
    loss_of(model(x)).backward()
    assert sorted(calls) == sorted([*(n for n, _ in model.named_parameters()), "x"])


def test_what_hooks_make_of_gradients_is_what_counts() -> None:
    """Hooks on the outputs, which change everything behind them, on a parameter and on the input, which change these."""
    reversible, stored = both(pyramid().double())
    results = []
    for model, hooked in ((reversible, True), (stored, True), (stored, False)):
        model.zero_grad()
        x = streams(dtype=torch.float64)[0].requires_grad_()
        outputs = model(x)
        handles = [
            tensor.register_hook(lambda grad, factor=factor: grad * factor)
            for tensor, factor in (
                (outputs[0], -2.0),
                (outputs[1], 1.5),
                (next(model.parameters()), 3.0),
                (x, 5.0),
            )
            if hooked
        ]
        loss_of(outputs).backward()
        results.append([x.grad, *(p.grad for p in model.parameters())])
        for handle in handles:
            handle.remove()
    ours, theirs, without = results
    assert_same_gradients(ours, theirs, **F64)
    assert all(not torch.allclose(a, b) for a, b in zip(ours, without, strict=True))  # type: ignore[arg-type]


def test_parameter_hooks_fire_from_the_last_layer_to_the_first() -> None:
    model = pyramid()
    order: list[int] = []
    for index, layer in enumerate(model):
        next(layer.parameters()).register_post_accumulate_grad_hook(lambda p, index=index: order.append(index))
    loss_of(model(*streams())).backward()
    assert order == sorted(order, reverse=True)


def test_full_backward_hook_on_the_whole_model() -> None:
    reversible, stored = both(pyramid().double())
    seen = []
    for model in (reversible, stored):
        model.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append((grad_in, grad_out)))
        loss_of(model(streams(dtype=torch.float64)[0].requires_grad_())).backward()
    for ours, theirs in zip(seen[0], seen[1], strict=True):
        assert_same_gradients(list(ours), list(theirs), **F64)


def test_saved_tensor_hooks_offload_to_cpu() -> None:
    model = pyramid().double()
    x = streams(dtype=torch.float64)
    expected = gradients(model, x)
    model.zero_grad()
    with torch.autograd.graph.save_on_cpu():
        leaf = x[0].clone().requires_grad_()
        loss = loss_of(model(leaf))
    loss.backward()
    assert_same_gradients([leaf.grad, *(p.grad for p in model.parameters())], [*expected[0], *expected[1]], rtol=0, atol=0)
    packed: set[int] = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.add(t.data_ptr()) or t, lambda t: t):
        outputs = model(leaf)
    assert packed == {t.data_ptr() for t in (*outputs, *model.parameters())}, "all that is kept goes through the hooks"


class Cut(Edge):
    """Has parameters that no gradient reaches."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_edges_without_a_graph_get_no_gradient() -> None:
    layers = [silo(2, 2) for _ in range(2)]
    layers[0].down["0"]["1"] = Cut(0, 1)
    reversible, stored = both(ReversibleSequential(*layers).double())
    x = streams(2, dtype=torch.float64)
    ours, theirs = gradients(reversible, x), gradients(stored, x)
    assert any(grad is None for grad in theirs[1])
    for found, wanted in zip(ours, theirs, strict=True):
        assert_same_gradients(found, wanted, **F64)


def test_anomaly_mode() -> None:
    with torch.autograd.set_detect_anomaly(True):
        model = pyramid()
        loss_of(model(*streams())).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        with pytest.raises(RuntimeError, match="returned nan values"):
            (loss_of(pyramid()(*streams())) * float("nan")).backward()


def test_requires_grad_switched_between_steps() -> None:
    model, stored = both(pyramid().double())
    x = streams(dtype=torch.float64)
    for frozen in ([0, 1, 2], [3], [], [5], [0, 1, 2, 3, 4, 5]):
        for m in (model, stored):
            m.requires_grad_(True)
            for index in frozen:
                m[index].requires_grad_(False)
        ours, theirs = gradients(model, x), gradients(stored, x)
        assert_same_gradients([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], **F64)


def test_frozen_layers_in_front_run_once_and_without_tape() -> None:
    model = pyramid()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    runs: list[int] = []
    model[0].chains[0][0].f.register_forward_hook(lambda *_: runs.append(0))
    model[2].chains[0][0].f.register_forward_hook(lambda *_: runs.append(2))
    loss_of(model(*streams())).backward()
    assert runs == [0, 2, 2]


class LowRank(nn.Module):
    """LoRA: weight + B @ A, the weight frozen."""

    def __init__(self, weight: Tensor, rank: int = 2) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, weight[0].numel(), dtype=weight.dtype) * 0.1)
        self.b = nn.Parameter(torch.randn(weight.shape[0], rank, dtype=weight.dtype) * 0.1)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).view_as(weight)


@pytest.mark.parametrize("cached", [False, True])
def test_lora_parametrisations(cached: bool) -> None:
    model = pyramid().double()
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            module.weight.requires_grad_(False)
            parametrize.register_parametrization(module, "weight", LowRank(module.weight))
    model, stored = both(model)
    x = streams(dtype=torch.float64)
    theirs = gradients(stored, x)
    if cached:  # a weight computed without graph in forward must not serve the replay
        with parametrize.cached():
            ours = gradients(model, x)
    else:
        ours = gradients(model, x)
    assert_same_gradients([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], **F64)
    assert any(g is not None and g.abs().sum() > 0 for g in ours[1])


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_weight_and_spectral_norm(norm: object) -> None:
    """Spectral norm changes buffers in forward: the replay starts from the old ones, and they move once."""
    model = pyramid().double()
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            norm(module)  # type: ignore[operator]
    model, stored = both(model)
    x = streams(dtype=torch.float64)
    ours, theirs = gradients(model, x), gradients(stored, x)
    assert_same_gradients([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], **F64)
    for a, b in zip(model.buffers(), stored.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_parameters_tied_between_edges() -> None:
    model = pyramid().double()
    chains = model[4].chains
    chains[0][1].f[0].weight = chains[0][0].g[0].weight
    model[2].chains[0][0].f[0].weight = chains[0][0].g[0].weight
    model, stored = both(model)
    x = streams(dtype=torch.float64)
    ours, theirs = gradients(model, x), gradients(stored, x)
    assert_same_gradients([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], **F64)


def test_functional_call() -> None:
    """Gradients reach the tensors that stood in for the parameters, though backward runs after the call."""
    model = pyramid(norm=True).double().train()
    state = {name: (p * 1.1).detach().requires_grad_() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    x = streams(dtype=torch.float64)[0]
    loss = loss_of(torch.func.functional_call(model, (state, buffers), (x,)))
    grads = torch.autograd.grad(loss, list(state.values()))
    reference = set_reversible(copy.deepcopy(model), False)
    reference.load_state_dict({**{k: v.detach() for k, v in state.items()}, **dict(model.named_buffers())})
    expected = gradients(reference, [x])[1]
    assert_same_gradients(list(grads), expected, **F64)
    assert all(p.grad is None for p in model.parameters())
    assert all(not torch.equal(buffers[n], b) for n, b in model.named_buffers() if n.endswith("running_mean"))


def test_released_graph_is_refused() -> None:
    loss = loss_of(pyramid()(*streams()))
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_retain_graph_gives_the_same_gradients_again() -> None:
    model = pyramid()
    loss = loss_of(model(*streams()))
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert_same_gradients(list(first), list(second), rtol=0, atol=0)


def test_double_backward_says_that_it_is_not_supported() -> None:
    model = pyramid()
    with pytest.raises(RuntimeError, match="double backward through reversible layers is not supported.*reversible=False"):
        torch.autograd.grad(loss_of(model(*streams())), list(model.parameters()), create_graph=True)
    edge = Edge(0, 0)
    with pytest.raises(RuntimeError, match="double backward through a recomputed module is not supported"):
        torch.autograd.grad(recompute(edge, *streams()).sum(), list(edge.parameters()), create_graph=True)
    set_reversible(model, False)
    grads = torch.autograd.grad(loss_of(model(*streams())), list(model.parameters()), create_graph=True)
    sum(g.sum() for g in grads).backward()


def test_backward_in_inference_mode_is_refused() -> None:
    loss = loss_of(pyramid()(*streams()))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        loss.backward()


def test_forward_in_inference_mode_is_plain() -> None:
    model = pyramid()
    with torch.inference_mode():
        outputs = model(*streams())
    assert all(o.is_inference() for o in outputs)


def test_outputs_changed_in_place_are_refused() -> None:
    outputs = pyramid()(*streams())
    loss = sum(output.sum() for output in outputs)  # keeps nothing of them itself, which would be found changed too
    with torch.no_grad():
        outputs[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameter_changed_between_forward_and_backward_is_refused() -> None:
    model = pyramid()
    loss = loss_of(model(*streams()))
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradient_that_enters_between_layers_alone_is_refused() -> None:
    model = pyramid()
    taken: list[Tensor] = []
    model[2].register_forward_hook(lambda m, args, out: taken.extend(out))
    model(*streams())
    with pytest.raises(RuntimeError, match="can enter a ReversibleSequential only by its outputs"):
        taken[0].sum().backward()


def test_gradient_that_also_enters_between_layers_is_right() -> None:
    results = []
    for model in both(pyramid().double()):
        taken: list[Tensor] = []
        model[2].register_forward_hook(lambda m, args, out, taken=taken: taken.extend(out))
        loss = loss_of(model(*streams(dtype=torch.float64))) + taken[1].cos().sum()
        results.append(list(torch.autograd.grad(loss, list(model.parameters()))))
    assert_same_gradients(results[0], results[1], **F64)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_nested_in_torch_checkpoint(use_reentrant: bool) -> None:
    results = []
    for model in both(pyramid().double()):
        x = streams(dtype=torch.float64)[0].requires_grad_()
        loss_of(checkpoint(model, x, use_reentrant=use_reentrant)).backward()
        results.append([x.grad, *(p.grad for p in model.parameters())])
    assert_same_gradients(results[0], results[1], **F64)


def test_checkpoint_and_reversible_layers_inside_an_edge() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ReversibleSequential(blocks(1), blocks(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[0]

    from revbifpn.reversible import RevSilo

    torch.manual_seed(0)
    down = nn.Sequential(Nested(), Edge(0, 1))
    model = ReversibleSequential(silo(2, 2), RevSilo({(0, 1): down}, {(1, 0): Checkpointed(Edge(1, 0))})).double()
    reversible, stored = both(model)
    x = streams(2, dtype=torch.float64)
    ours, theirs = gradients(reversible, x), gradients(stored, x)
    assert_same_gradients([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], **F64)


def test_recompute_is_the_module_with_less_kept() -> None:
    torch.manual_seed(0)
    edge = Edge(0, 1, norm=True, dropout=0.3).train()
    reference = copy.deepcopy(edge)
    x = streams()[0].requires_grad_()
    saved: list[Tensor] = []
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = recompute(edge, x)
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), *(p.data_ptr() for p in edge.parameters())}
    output.sin().sum().backward()
    x2 = streams()[0].requires_grad_()
    torch.manual_seed(3)
    reference(x2).sin().sum().backward()
    ours = [x.grad, *(p.grad for p in edge.parameters()), *edge.buffers()]
    theirs = [x2.grad, *(p.grad for p in reference.parameters()), *reference.buffers()]
    assert_same_gradients(ours, theirs, rtol=0, atol=0)  # the same kernels on the same values
