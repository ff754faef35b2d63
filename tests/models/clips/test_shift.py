"""Temporal shift: the map itself, and couplings that stay invertible with it."""

from __future__ import annotations

import pytest
import timm
import torch

import revbifpn  # noqa: F401
from revbifpn import fuse, set_exact, set_reversible
from revbifpn.models.clips import ShiftedMBConv, shift_couplings, shift_frames
from revbifpn.reversible import RevBlock, StreamWise
from tests.models.clips.conftest import FRAMES, assert_close, clips, grads, tiny


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shift_moves_the_folds_and_nothing_else(memory_format: torch.memory_format) -> None:
    x = torch.randn(2 * FRAMES, 8, 3, 5).contiguous(memory_format=memory_format)
    y = shift_frames(x, FRAMES, 2)
    for clip in range(2):
        for time in range(FRAMES):
            frame, at = y[clip * FRAMES + time], clip * FRAMES + time
            after = x[at + 1] if time < FRAMES - 1 else torch.zeros_like(x[0])
            before = x[at - 1] if time > 0 else torch.zeros_like(x[0])
            assert torch.equal(frame[:2], after[:2])
            assert torch.equal(frame[2:4], before[2:4])
            assert torch.equal(frame[4:], x[at][4:])
    assert y.is_contiguous(memory_format=memory_format)


def test_shift_back_is_the_transposed_map() -> None:
    x = torch.randn(2 * FRAMES, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    (expected,) = torch.autograd.grad(shift_frames(x, FRAMES, 2), x, grad)
    assert torch.equal(shift_frames(grad, FRAMES, 2, back=True), expected)


def test_a_batch_that_is_no_whole_number_of_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="a clip has 4 frames, and a batch of 6 is no whole number of clips"):
        shift_frames(torch.zeros(6, 8, 1, 1), FRAMES, 1)


def test_shifted_couplings_are_exactly_invertible() -> None:
    """In double precision to rounding; on the grid of the exact mode bit for bit."""
    model = tiny().double().eval()
    assert shift_couplings(model, FRAMES) == 2 * sum(isinstance(module, RevBlock) for module in model.modules())
    frames = clips().flatten(0, 1).double()
    with torch.no_grad():
        streams = model.body(model.stem(frames))
        torch.testing.assert_close(model.body.inverse(*streams)[0], model.stem(frames), rtol=0, atol=1e-9)
        model.float()
        set_exact(model, True)
        (layer,) = [module for module in model.body if isinstance(module, StreamWise)][-1:]
        x = [torch.randint(-(2**10), 2**10, (2 * FRAMES, c, 2, 2)) / 2.0**10 for c in (16, 16, 16)]
        assert all(torch.equal(a, b) for a, b in zip(layer.inverse(*layer(*x)), x, strict=True))


@pytest.mark.parametrize("frugal_chunks", [False, True])
def test_reversible_gradients_are_those_of_stored_mode(frugal_chunks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With replays in one chunk, and in several, across which a shift reaches. 5e-5: float32, sums in other orders."""
    if frugal_chunks:
        from revbifpn.reversible import kernels

        monkeypatch.setattr(kernels, "chunk_bytes", lambda *_: 1)
    model = tiny().train()
    shift_couplings(model, FRAMES)
    frames = clips().flatten(0, 1)
    found = []
    for reversible in (True, False):
        model.zero_grad()
        set_reversible(model, reversible)
        images = frames.clone().requires_grad_()
        model(images).square().mean().backward()
        found.append(grads(model) | {"images": images.grad})
    assert_close(found[0], found[1], 5e-5)


def test_the_lean_form_computes_what_the_modules_do() -> None:
    """A hook on an edge makes its layer take the plain form, in which the modules themselves run."""
    model = tiny().train()
    shift_couplings(model, FRAMES)
    layers = [module for module in model.modules() if isinstance(module, StreamWise)]
    assert all(layer.plan().lean for layer in layers)
    frames = clips().flatten(0, 1)
    found = []
    for _ in range(2):
        model.zero_grad()
        output = model(frames)
        output.square().mean().backward()
        found.append(grads(model) | {"output": output.detach()})
        for module in model.modules():
            if isinstance(module, ShiftedMBConv):
                module.register_forward_hook(lambda *_: None)
    assert not any(layer.plan().lean for layer in layers)
    assert_close(found[0], found[1], 1e-5)


def test_frames_of_other_clips_do_not_matter_and_neighbours_do() -> None:
    model = tiny().eval()
    shift_couplings(model, FRAMES)
    x = clips(2)
    with torch.no_grad():
        before = model(x.flatten(0, 1)).unflatten(0, (2, FRAMES))
        x[1, 2] += 1
        after = model(x.flatten(0, 1)).unflatten(0, (2, FRAMES))
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1, 1], after[1, 1])


def test_keys_stay_so_that_weights_of_images_fit() -> None:
    plain, shifted = tiny(), tiny()
    shift_couplings(shifted, FRAMES)
    assert plain.state_dict().keys() == shifted.state_dict().keys()
    shifted.load_state_dict(plain.state_dict())


def test_fused_models_shift_too() -> None:
    model = tiny().eval()
    shift_couplings(model, FRAMES)
    frames = clips().flatten(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(fuse(model)(frames), model(frames), rtol=1e-4, atol=1e-5)


def test_a_model_without_couplings_is_refused() -> None:
    with pytest.raises(ValueError, match="ResNet has none: choose another temporal head"):
        shift_couplings(timm.create_model("test_resnet", num_classes=0), FRAMES)
    with pytest.raises(ValueError, match="one part in 99 of 8 channels is none"):
        shift_couplings(tiny(), FRAMES, div=99)
