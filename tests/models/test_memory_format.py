"""The memory format: what is computed in, what is handed back, and that neither changes what is computed."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn

from revbifpn import RevBiFPN, RevBiFPNPyramid, set_exact, set_reversible
from revbifpn.reversible.memory_format import MemoryFormat, format_to_compute_in, in_format
from revbifpn.reversible.streams import memory_format_of
from tests.oracle import image

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CHOICES = get_args(MemoryFormat)


def images(memory_format: str) -> Tensor:
    return image(2, 64, 96).contiguous(memory_format=FORMATS[memory_format])


def computed_in(model: RevBiFPNPyramid, x: Tensor) -> list[torch.memory_format]:
    """The formats of the streams that go into the body's layers behind the stem."""
    seen: list[torch.memory_format] = []
    for layer in list(model.body)[1:]:
        layer.register_forward_pre_hook(lambda _, streams: seen.extend(map(memory_format_of, streams)))
    with torch.no_grad():
        model(x)
    return seen


@pytest.mark.parametrize(("choice", "came_in"), product(CHOICES, FORMATS))
def test_what_is_computed_in(choice: MemoryFormat, came_in: str) -> None:
    chosen = {"auto": "channels_last", "keep": came_in}.get(choice, choice)
    seen = computed_in(RevBiFPNPyramid("s0", memory_format=choice), images(came_in))
    assert len(seen) == 2 * (1 + 2 + 3 + 4 + 4)
    assert set(seen) == {FORMATS[chosen]}


@pytest.mark.parametrize("grad", [False, True])
def test_one_image_is_computed_in_channels_last_to_the_end(grad: bool) -> None:
    """torch takes some views of a single sample's channels for contiguous, and convolutions then follow."""
    model = RevBiFPNPyramid("s0", reversible=False).eval()
    seen: list[torch.memory_format] = []
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)]
    for conv in convs:
        conv.register_forward_hook(lambda _, inputs, output: seen.append(memory_format_of(output)))
    with torch.set_grad_enabled(grad):
        model(image(1, 64, 96))
    assert seen == [torch.channels_last] * len(convs)


def test_auto_is_for_the_cpu() -> None:
    """No other device was measured, so there the images decide."""
    for memory_format in FORMATS.values():
        x = torch.empty(2, 3, 8, 8, device="meta").contiguous(memory_format=memory_format)
        assert format_to_compute_in("auto", x) == memory_format


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: RevBiFPNPyramid("s0"), id="pyramid"),
        pytest.param(lambda: timm.create_model("revbifpn_s0", features_only=True), id="features"),
        pytest.param(lambda: timm.create_model("revbifpn_s0", features_only=True, feature_cls="hook"), id="hook"),
        pytest.param(lambda: timm.create_model("revbifpn_s0", features_only=True, feature_cls="fx"), id="fx"),
        pytest.param(lambda: _Many(), id="classifier"),
    ],
)
@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_what_is_handed_back_is_laid_out_as_the_images(model: type[nn.Module], reversible: bool, grad: bool) -> None:
    made = set_reversible(model(), reversible)
    for name, memory_format in FORMATS.items():
        with torch.set_grad_enabled(grad):
            outputs = made(images(name))
        assert [memory_format_of(output) for output in outputs] == [memory_format] * len(outputs)


class _Many(nn.Module):
    """All that a classifier returns besides logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = RevBiFPN("s0")

    def forward(self, x: Tensor) -> list[Tensor]:
        features, levels = self.model.forward_intermediates(x)
        return [
            features,
            *levels,
            *self.model.forward_body(x),
            *self.model.forward_levels(x, [1]),
            self.model.forward_features(x),
        ]


def outputs_and_gradients(model: RevBiFPNPyramid, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    outputs = model(x)
    torch.autograd.backward(outputs, [torch.cos(output.detach()) for output in outputs])
    return [*(output.detach() for output in outputs), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("reversible", [True, False])
def test_values_and_gradients_are_the_same_in_every_format(reversible: bool) -> None:
    """In float64, where another order of sums is all that differs: 1e-9 of each tensor's largest value."""
    torch.manual_seed(0)
    model = RevBiFPNPyramid("s0", memory_format="contiguous", reversible=reversible).double()
    expected = outputs_and_gradients(model, images("contiguous").double())
    for choice, came_in in product(CHOICES, FORMATS):
        model.memory_format = choice
        for ours, theirs in zip(outputs_and_gradients(model, images(came_in).double()), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * float(theirs.abs().max()) + 1e-12)


@pytest.mark.parametrize("choice", CHOICES)
def test_exact_mode_is_exact_in_every_format(choice: MemoryFormat) -> None:
    torch.manual_seed(0)
    model = set_exact(RevBiFPNPyramid("s0", memory_format=choice))
    results = []
    for reversible in (True, False):
        set_reversible(model, reversible)
        results.append(outputs_and_gradients(model, images("contiguous")))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(("choice", "came_in"), product(CHOICES, FORMATS))
def test_the_body_is_inverted_exactly_in_every_format(choice: MemoryFormat, came_in: str) -> None:
    torch.manual_seed(0)
    model = set_exact(RevBiFPNPyramid("s0", memory_format=choice)).eval()
    x = images(came_in)
    with torch.no_grad():
        (rebuilt,) = model.body.inverse(*model.forward_body(x))
    assert torch.equal(rebuilt, torch.round(x * 2**13) / 2**13)
    assert memory_format_of(rebuilt) == FORMATS[came_in]


def test_the_format_can_be_switched() -> None:
    model = RevBiFPN("s0")
    assert model.memory_format == "auto"
    model.memory_format = "contiguous"
    assert set(computed_in(model, images("channels_last"))) == {torch.contiguous_format}
    with pytest.raises(ValueError, match="memory_format must be one of .*, got 'NCHW'"):
        model.memory_format = "NCHW"  # type: ignore[assignment]
    assert model.memory_format == "contiguous"


def test_timm_takes_the_format() -> None:
    assert timm.create_model("revbifpn_s0", memory_format="keep").memory_format == "keep"
    features = timm.create_model("revbifpn_s0", features_only=True, memory_format="keep")
    assert features.model.memory_format == "keep"


def test_weights_and_gradients_stay_contiguous() -> None:
    """So optimizers, DDP's buckets and files have nothing to convert; safetensors refuses what is not contiguous."""
    model = RevBiFPN("s0", num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(images("contiguous")).square().sum().backward()
    optimizer.step()
    assert all(p.is_contiguous() and p.grad is not None and p.grad.is_contiguous() for p in model.parameters())
    assert save(model.state_dict())


def test_a_gradient_comes_back_in_the_format_of_what_was_converted() -> None:
    x = images("channels_last").requires_grad_()
    formats = []
    x.register_hook(lambda grad: formats.append(memory_format_of(grad)))
    y = in_format(x, torch.contiguous_format)
    assert memory_format_of(y) == torch.contiguous_format
    y.backward(torch.ones_like(y))
    assert formats == [torch.channels_last]
    assert torch.equal(
        torch.autograd.functional.hessian(lambda t: in_format(t, torch.contiguous_format).pow(3).sum(), x[:1, :1, :2, :2])[
            0, 0, 0, 0, 0, 0, 0, 0
        ],
        6 * x[0, 0, 0, 0],
    )
