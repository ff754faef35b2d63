"""The models compute what the published architecture computes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from revbifpn import RevBiFPN, convert_checkpoint, set_reversible
from tests.oracle import expected, image, reference_state_dict
from tests.reversible.common import parameter_gradients, worst_error

# Values of order one, float32, other kernels and another order of sums than the oracle's: rtol 1e-4; near zero 1e-5.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
# Norms of gradients through the whole network; `head.fc.weight`'s stored norm carries 3e-4 of summation error. Norm biases
# before another normalisation have a true gradient of zero and hold rounding noise of 1e-7.
GRAD_TOLERANCE = {"rtol": 1e-3, "atol": 1e-6}
# Rebuilt activations are rounded, so a ReLU whose input is all but zero may let another gradient pass: on one processor one
# did, and moved some of the first edges' norms by 0.1 to 0.3%. An image that is 1e-7 brighter moves none by more than 1e-5.
KINK_TOLERANCE, WITH_KINKS = {"rtol": 2e-2, "atol": 1e-6}, 0.03


def model_with_oracle_weights(name: str, **kwargs: object) -> RevBiFPN:
    model = RevBiFPN(name, **kwargs)  # type: ignore[arg-type]
    model.load_state_dict(convert_checkpoint(reference_state_dict(f"revbifpn_{name}")))
    return model


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("name", ["s0", "s1", "s2", "s3"])
def test_forward(name: str, reversible: bool) -> None:
    model = model_with_oracle_weights(name, reversible=reversible).eval()
    size = model.variant.image_size
    x = image(1, size, size)
    with torch.set_grad_enabled(reversible):  # with grad mode on, reversible mode takes the tape
        levels = model.forward_pyramid(x)
        logits = model.forward_head(model._fold(levels))
    torch.testing.assert_close(logits, expected()[f"revbifpn_{name}.logits"], **TOLERANCE)
    for i, level in enumerate(levels):
        mean, std = level.mean(dim=(0, 2, 3)), level.std(dim=(0, 2, 3))
        torch.testing.assert_close(mean, expected()[f"revbifpn_{name}.pyramid{i}.channel_mean"], **TOLERANCE)
        torch.testing.assert_close(std, expected()[f"revbifpn_{name}.pyramid{i}.channel_std"], **TOLERANCE)


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_step(reversible: bool, memory_format: torch.memory_format) -> None:
    model = model_with_oracle_weights("s0", drop_rate=0.0, reversible=reversible).train()
    x = image(2, 128, 192, seed=1).contiguous(memory_format=memory_format)
    logits = model(x)
    loss = F.cross_entropy(logits, torch.tensor([3, 777]))
    loss.backward()

    prefix = "revbifpn_s0.train."
    values = {key.removeprefix(prefix): value for key, value in expected().items() if key.startswith(prefix)}
    torch.testing.assert_close(logits, values.pop("logits"), **TOLERANCE)
    torch.testing.assert_close(loss.view(1), values.pop("loss"), **TOLERANCE)
    reference = reference_state_dict("revbifpn_s0")
    ours = dict(zip(reference, convert_checkpoint(reference), strict=True))  # published key -> ours
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    checked = kinks = 0
    for key, value in values.items():
        if key.startswith("grad_norm."):
            grad = params[ours[key.removeprefix("grad_norm.")]].grad
            assert grad is not None
            norm, wanted = grad.norm().view(1), value.view(1)
            kinks += not torch.allclose(norm, wanted, **GRAD_TOLERANCE)
            torch.testing.assert_close(norm, wanted, **KINK_TOLERANCE, msg=lambda m, key=key: f"{key}: {m}")
            checked += 1
        else:
            torch.testing.assert_close(buffers[ours[key]], value, **TOLERANCE)
    assert checked == len(params)
    assert kinks <= (WITH_KINKS * checked if reversible else 0)
    assert {int(b) for n, b in buffers.items() if n.endswith("num_batches_tracked")} == {1}


def test_running_variances_by_their_definition() -> None:
    """momentum * unbiased batch variance + (1 - momentum) * old variance, moved once."""
    model = model_with_oracle_weights("s0", drop_rate=0.0).train()
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda m, args, name=name: seen.setdefault(name, args[0].detach().clone()))
    before = copy.deepcopy(dict(model.named_buffers()))
    model(image(2, 64, 64)).sum().backward()
    after = dict(model.named_buffers())
    for name, x in seen.items():
        key = f"{name}.running_var"
        wanted = 0.9 * before[key] + 0.1 * x.var(dim=(0, 2, 3), unbiased=True)
        torch.testing.assert_close(after[key], wanted, **TOLERANCE)


@pytest.mark.parametrize("name", ["s0", "s1", "s2", "s3"])
def test_gradients_of_both_modes_agree(name: str) -> None:
    """Float32 rounding in rebuilt activations, of each parameter by itself: 3e-5 of its norm at most were measured."""
    model = RevBiFPN(name, drop_rate=0.0, drop_path_rate=0.1).train()
    stored = set_reversible(copy.deepcopy(model), False)
    x = image(2, 64, 96)
    for m in (model, stored):
        torch.manual_seed(1)
        F.cross_entropy(m(x), torch.tensor([3, 777])).backward()
    error, parameter = worst_error(parameter_gradients(model), parameter_gradients(stored))
    assert error < 3e-4, parameter
    for a, b in zip(model.buffers(), stored.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["s0", "s1", "s2", "s3"])
def test_exact_mode_is_bit_identical(name: str, bf16: bool) -> None:
    model = RevBiFPN(name, drop_path_rate=0.1, exact=True).train()
    stored = set_reversible(copy.deepcopy(model), False)
    grads = []
    for m in (model, stored):
        torch.manual_seed(1)
        x = image(2, 64, 96).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(m(x).float(), torch.tensor([3, 777]))
        loss.backward()
        grads.append([x.grad, *(p.grad for p in m.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [False, True])
def test_body_is_inverted(exact: bool) -> None:
    """The inverse returns the image's repeated channels; in exact mode on the grid, bit for bit."""
    model = model_with_oracle_weights("s0", exact=exact).eval()
    x = image(1, 64, 64)
    with torch.no_grad():
        (rebuilt,) = model.body.inverse(*model.forward_body(x))
    if exact:
        assert torch.equal(rebuilt, torch.round(x * 2**13) / 2**13)
    else:
        # Errors of each edge's float32 rounding (1e-7 of streams up to 10), through 100 edges that may amplify them.
        torch.testing.assert_close(rebuilt, x, rtol=1e-3, atol=1e-3)
