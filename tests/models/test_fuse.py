"""Models for inference: what they compute, what they refuse, and that they copy, save and export as any other."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

from revbifpn import RevBiFPN, RevBiFPNPyramid, RevBlock, ReversibleSequential, fuse, set_exact
from revbifpn.models.blocks import ConvNormAct, MBConv, UpEdge
from tests.networks import SMALL
from tests.oracle import image

FORMATS = [torch.contiguous_format, torch.channels_last]


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in eval mode, with norms that do something: else outputs of a new model are all but zero."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator).to(like.dtype) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(uniform(module.bias, -0.2, 0.2))
                module.running_mean.copy_(uniform(module.running_mean, -0.2, 0.2))
                module.running_var.copy_(uniform(module.running_var, 0.5, 2))
    return model.eval()


def flat(outputs: Tensor | list[Tensor] | tuple[Tensor, ...] | dict[str, Tensor]) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return list(outputs.values()) if isinstance(outputs, dict) else list(outputs)


def assert_equal(ours: nn.Module, theirs: nn.Module, x: Tensor, tolerance: float) -> None:
    """Equal outputs, by ``tolerance`` of each one's largest value."""
    for a, b in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        assert float(b.detach().abs().max()) > 1e-3
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.detach().abs().max()))


def images(batch: int, model: nn.Module) -> Tensor:
    return image(batch, 64, 96).repeat(1, 2, 1, 1)[:, : getattr(model, "in_chans", 3)]


MODELS = {
    "classifier": lambda: RevBiFPN(SMALL, num_classes=10),
    "four channels": lambda: RevBiFPN(SMALL, num_classes=10, in_chans=4, drop_path_rate=0.1),
    "pyramid": lambda: RevBiFPNPyramid(SMALL),
    "stored": lambda: RevBiFPN(SMALL, num_classes=10, reversible=False),
    "contiguous": lambda: RevBiFPN(SMALL, num_classes=10, memory_format="contiguous"),
    "timm": lambda: timm.create_model("revbifpn_s0", num_classes=10),
    "features": lambda: timm.create_model("revbifpn_s0", features_only=True, out_indices=(1, 3)),
    "hook": lambda: timm.create_model("revbifpn_s0", features_only=True, feature_cls="hook"),
    "fx": lambda: timm.create_model("revbifpn_s0", features_only=True, feature_cls="fx"),
    "sync": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(RevBiFPN(SMALL, num_classes=10)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("grad", [False, True])
def test_it_computes_what_the_model_does(name: str, grad: bool) -> None:
    """A thousand additions in another order: 1e-4 in float32, and in float64 1e-12."""
    torch.manual_seed(0)
    model = trained(MODELS[name]())
    before = copy.deepcopy(model.state_dict())
    fused = fuse(model)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    with torch.set_grad_enabled(grad):
        for batch, memory_format in ((1, FORMATS[0]), (3, FORMATS[0]), (2, FORMATS[1])):
            x = images(batch, model).contiguous(memory_format=memory_format)
            kept = x.clone()
            assert_equal(fused, model, x, 1e-4)
            assert torch.equal(x, kept)
        assert_equal(fuse(model.double()), model, images(2, model).double(), 1e-12)


def test_no_norm_of_the_blocks_is_left() -> None:
    fused = fuse(trained(RevBiFPN(SMALL)))
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    assert not any(parameter.requires_grad for name, parameter in fused.named_parameters() if not name.startswith("head.fc"))


def test_in_place_it_is_the_model_itself() -> None:
    model = trained(RevBiFPN(SMALL, num_classes=10))
    x = image(2, 64, 64)
    with torch.no_grad():
        expected = model(x)  # the engine now knows the edges that are about to be replaced
        assert fuse(model, inplace=True) is model
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
        assert fuse(fuse(model))(x).equal(model(x))


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(lambda: ConvNormAct(6, 8, 3, 2), id="conv"),
        pytest.param(lambda: ConvNormAct(6, 8, act=False), id="pointwise"),
        pytest.param(lambda: MBConv(6, 8, 3, 1, 2, 0.25, 0.1), id="mbconv"),
        pytest.param(lambda: MBConv(6, 8, 15, 8), id="strided"),
        pytest.param(lambda: UpEdge(MBConv(6, 4, 5, 1, 2, 0.25), 2), id="up"),
    ],
)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_blocks_by_themselves(block: Callable[[], nn.Module], memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = trained(block())
    fused = fuse(model)
    for batch in (1, 2):
        x = torch.randn(batch, 6, 16, 24).contiguous(memory_format=memory_format)
        kept = x.clone()
        with torch.no_grad():
            assert_equal(fused, model, x, 1e-5)
        assert torch.equal(x, kept)


def test_layers_leave_the_tensors_of_their_caller_alone() -> None:
    """A part of a fused model works in the memory of what it made itself, and of nothing else."""
    fused = fuse(trained(RevBiFPNPyramid("s0")))
    streams = [torch.randn(2, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate((48, 64, 80, 160))]
    kept = [stream.clone() for stream in streams]
    with torch.no_grad():
        fused.body[7:](*streams)
        fused.body[7](*streams)
        fused.body[8](*streams)
    assert all(map(torch.equal, streams, kept))


def test_gradients_of_the_image() -> None:
    """As for a map of what the logits depend on."""
    torch.manual_seed(0)
    model = trained(RevBiFPN(SMALL, num_classes=10)).double()
    grads = []
    for m in (model, fuse(model)):
        x = image(2, 64, 64).double().requires_grad_()
        m(x).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=1e-10 * float(grads[0].abs().max()))


def test_exact_mode_stays_on_the_grid() -> None:
    torch.manual_seed(0)
    model = set_exact(trained(RevBiFPNPyramid(SMALL)), True, 13)
    fused = fuse(model)
    with torch.no_grad():
        for ours, theirs in zip(fused.forward_body(image(2, 64, 64)), model.forward_body(image(2, 64, 64)), strict=True):
            assert torch.equal(ours * 2**13, (ours * 2**13).round())
            # An edge's value may be rounded to the grid's next point, and what follows depends on it.
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Cast or under autocast: as near to float32 as the unfused model is, by a factor of two."""
    torch.manual_seed(0)
    model = trained(RevBiFPN(SMALL, num_classes=10))
    fused, x = fuse(model), image(2, 64, 64)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype):
            errors = [float((m(x) - exact).norm()) for m in (fused, model)]
        cast = [float((m.to(dtype)(x.to(dtype)).float() - exact).norm()) for m in (fused, model)]
    assert errors[0] <= 2 * errors[1]
    assert cast[0] <= 2 * cast[1]


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fuse: block 'body\.1\..*' is in training mode, .*: call model\.eval\(\) first"):
        fuse(RevBiFPN(SMALL))
    fused = fuse(trained(RevBiFPN(SMALL))).train()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="made by revbifpn.fuse for inference and cannot"):
            fused(image(2, 64, 64))
    fused.eval()(image(2, 64, 64))


def _no_statistics(model: nn.Module) -> None:
    norm = model.neck[0].project.norm
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


def _other_norm(model: nn.Module) -> None:
    model.neck[0].project.norm = nn.GroupNorm(2, 48).eval()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_statistics, "has a norm without running statistics"),
        (_other_norm, "is not a convolution and a batch norm any more, but Conv2d, GroupNorm"),
        (lambda model: model.neck[0].register_forward_hook(print), "has hooks, parametrizations"),
        (lambda model: parametrizations.weight_norm(model.neck[0].project.conv), "has hooks, parametrizations"),
    ],
)
def test_what_cannot_be_fused_is_named(change: Callable[[nn.Module], object], message: str) -> None:
    model = trained(RevBiFPNPyramid(SMALL))
    change(model)
    with pytest.raises(ValueError, match=rf"^fuse: block 'neck\.0' {message}"):
        fuse(model, inplace=True)
    assert isinstance(model.body[1].chains[0][0].f, MBConv)  # nothing was changed


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="fuse: Sequential contains no blocks of RevBiFPN"):
        fuse(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval())


def test_edges_of_others_are_left_as_they_are() -> None:
    """Their layers do not work in place: an edge that nobody knows may hand out or keep its source."""
    layer = RevBlock(nn.Identity(), MBConv(4, 4, 3))
    model = trained(ReversibleSequential(layer, layer))
    fused, x = fuse(model), torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        assert_equal(fused, model, x, 1e-5)
    assert not fused[0].in_place


def test_copies_and_files() -> None:
    """Weights that oneDNN packed go into neither, and are packed again when weights are loaded."""
    torch.manual_seed(0)
    fused, other = (fuse(trained(RevBiFPN(SMALL, num_classes=10), seed)) for seed in (0, 1))
    x = image(2, 64, 64)
    with torch.no_grad():
        expected = fused(x)
        assert torch.equal(copy.deepcopy(fused)(x), expected)
        file = io.BytesIO()
        torch.save(fused, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), expected)
        assert not torch.equal(other(x), expected)
        for assign in (False, True):
            other(x)
            other.load_state_dict(copy.deepcopy(fused.state_dict()), assign=assign)
            assert torch.equal(other(x), expected)
            for parameter in other.parameters():
                parameter.mul_(0.5)
            assert not torch.equal(other(x), expected)


def test_inference_mode_from_the_beginning() -> None:
    with torch.inference_mode():
        model = trained(RevBiFPN(SMALL, num_classes=10))
        assert_equal(fuse(model), model, image(2, 64, 64), 1e-4)


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = trained(RevBiFPN(SMALL, num_classes=10))
    monkeypatch.setattr(sys.modules[fuse.__module__], "_has_onednn", lambda: False)
    with torch.no_grad():
        assert_equal(fuse(model), model, image(2, 64, 64), 1e-4)


class TestExport:
    """The exported programs compute what the fused model does, for any batch."""

    def test_torch_export(self) -> None:
        model = fuse(trained(RevBiFPN(SMALL, num_classes=10)))
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (image(2, 64, 64),), dynamic_shapes={"image": {0: batch}})
        with torch.no_grad():
            assert_equal(program.module(), model, image(5, 64, 64, seed=3), 1e-4)

    def test_onnx_in_onnxruntime(self, tmp_path: Path) -> None:
        model = fuse(trained(RevBiFPN(SMALL, num_classes=10)))
        path = tmp_path / "model.onnx"
        shapes = {"image": {0: torch.export.Dim("batch", min=1, max=64)}}
        with torch.no_grad():
            torch.onnx.export(model, (image(2, 64, 64),), path, input_names=["image"], dynamic_shapes=shapes, dynamo=True)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for size in (1, 5):
                x = image(size, 64, 64, seed=size)
                (logits,) = session.run(None, {"image": x.numpy()})
                np.testing.assert_allclose(logits, model(x).numpy(), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("grad", [False, True])
    def test_jit_trace(self, grad: bool) -> None:
        model = fuse(trained(RevBiFPN(SMALL, num_classes=10)))
        with torch.set_grad_enabled(grad):
            traced = torch.jit.trace(model, image(1, 64, 64))
        with torch.no_grad():
            assert_equal(traced, model, image(3, 96, 64), 1e-4)
