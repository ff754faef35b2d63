"""torch.compile, torch.export and ONNX."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn import RevBiFPN, compile_edges
from revbifpn.reversible import ReversibleSequential
from tests.networks import SMALL
from tests.oracle import image
from tests.reversible.common import Edge, gradients, pyramid, streams, worst_error


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def training_losses(model: nn.Module, call: object, steps: int = 4) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = image(4, 64, 64), torch.arange(4)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(call(x), y)  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_model_trains_with_the_loss_curve_of_eager(backend: str) -> None:
    """The graph breaks at the reversible pass and nowhere else: neck, head and classifier are one graph each."""
    torch.manual_seed(0)
    model = timm.create_model("revbifpn_s0", num_classes=4, drop_rate=0.0).train()
    assert model.body.reversible
    expected = training_losses(reference := copy.deepcopy(model), reference)
    losses = training_losses(model, torch.compile(model, backend=backend))
    # Fused kernels round differently; over four steps of SGD that stays below a thousandth of losses of order one.
    assert losses == pytest.approx(expected, abs=1e-3)
    assert expected[-1] < expected[0]
    reasons = torch._dynamo.utils.counters["graph_break"]
    assert reasons
    assert all("ReversibleSequential._forward_in_pass" in reason for reason in reasons)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_eval_mode_compiles_to_a_full_graph() -> None:
    model = RevBiFPN(SMALL, num_classes=10).eval()
    # Where a graph breaks is Dynamo's to say; what a backend makes of the graph, another test's.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            compiled(image(2, 64, 64))
            x = image(2, 64, 64, seed=3)  # not the one that was traced
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_edges_train_like_eager_ones(backend: str) -> None:
    model = pyramid(norm=True).train()
    reference = copy.deepcopy(model)
    keys = list(model.state_dict())
    assert compile_edges(model, backend=backend) is model
    assert list(model.state_dict()) == keys
    for seed in (1, 2):  # the second time on other values than those that were traced
        x = streams(size=16, seed=seed)
        (ours_x, ours), (theirs_x, theirs) = gradients(model, x), gradients(reference, x)
        found, wanted = (
            dict(zip(map(str, range(len(ours) + 1)), [*g, *p], strict=True)) for g, p in ((ours_x, ours), (theirs_x, theirs))
        )
        error, name = worst_error(found, wanted)
        assert error < 1e-3, name  # float32, rebuilt and fused, of each gradient by itself; 8e-5 measured
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # running statistics moved once a step
    assert not torch._dynamo.utils.counters["graph_break"]
    shapes = {(edge[0].weight.shape, edge[0].stride) for edge in reference.modules() if isinstance(edge, Edge)}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2 * len(shapes)  # with and without gradients


def test_all_edges_are_compiled_not_only_the_first() -> None:
    """torch stops compiling after eight variants of one code; compile_edges raises that limit."""
    model = ReversibleSequential(*pyramid(), *(m for m in pyramid()))
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    first = ReversibleSequential(*list(model)[:6])
    compile_edges(first, backend=backend)
    shapes = {(e[0].weight.shape, e[0].stride) for e in first.modules() if isinstance(e, Edge)}
    gradients(first, streams(size=16))
    assert len(graphs) >= 2 * len(shapes)  # one with and one without gradients for each shape


class TestExport:
    def test_torch_export_with_dynamic_batch(self) -> None:
        model = RevBiFPN(SMALL, num_classes=10).eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (image(2, 64, 64),), dynamic_shapes={"image": {0: batch}})
        x = image(5, 64, 64, seed=3)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)

    @pytest.mark.long  # a fused classifier, and the backbone of a detector, are exported in any case
    def test_onnx_with_dynamic_batch_in_onnxruntime(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = RevBiFPN(SMALL, num_classes=10).eval()
        path = tmp_path / "model.onnx"
        torch.onnx.export(
            model,
            (image(2, 64, 64),),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=64)}},
            dynamo=True,
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in (1, 2, 5):
            x = image(batch, 64, 64, seed=batch)
            (logits,) = session.run(None, {"image": x.numpy()})
            with torch.no_grad():
                np.testing.assert_allclose(logits, model(x).numpy(), rtol=1e-4, atol=1e-4)

    def test_jit_trace(self) -> None:
        model = RevBiFPN(SMALL, num_classes=10).eval()
        traced = torch.jit.trace(model, image(1, 64, 64))
        for x in (image(1, 64, 64, seed=3), image(3, 32, 96, seed=4)):
            with torch.no_grad():
                torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)
