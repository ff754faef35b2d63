"""The yardstick computes what RevBiFPN computes."""

from __future__ import annotations

import doctest

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import benchmarks.plain
from benchmarks.plain import PlainRevBiFPN
from revbifpn import RevBiFPN
from revbifpn.models import VARIANTS

IMAGE = (2, 3, 64, 96)


def make(variant: str, checkpointing: bool = False) -> tuple[RevBiFPN, PlainRevBiFPN]:
    """A model in stored mode, and the yardstick with its weights."""
    torch.manual_seed(0)
    model = RevBiFPN(variant, num_classes=7, drop_rate=0.0, drop_path_rate=0.0, reversible=False)
    plain = PlainRevBiFPN(variant, num_classes=7, drop_rate=0.0, drop_path_rate=0.0, checkpointing=checkpointing)
    plain.load_state_dict(model.state_dict())
    return model, plain


def step(model: nn.Module, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of a training step; float64, so that only a different computation makes a difference."""
    model.double().train()
    logits: Tensor = model(image)
    F.cross_entropy(logits, torch.tensor([1, 4])).backward()
    return logits.detach(), {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_trains_as_stored_mode(checkpointing: bool, channels_last: bool) -> None:
    model, plain = make("s1", checkpointing)  # S1 repeats the image's channels, S0 does not
    image = torch.randn(IMAGE, dtype=torch.float64)
    if channels_last:
        image, plain = image.contiguous(memory_format=torch.channels_last), plain.to(memory_format=torch.channels_last)
    (ours, our_grads), (theirs, their_grads) = step(plain, image), step(model, image)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)  # sums in another order
    assert our_grads.keys() == their_grads.keys()
    for name, grad in our_grads.items():
        torch.testing.assert_close(grad, their_grads[name], rtol=1e-8, atol=1e-9, msg=name)


def test_it_moves_running_statistics_as_stored_mode() -> None:
    model, plain = make("s0")
    image = torch.randn(IMAGE, dtype=torch.float64)
    step(plain, image), step(model, image)
    theirs = dict(model.named_buffers())
    for name, ours in plain.named_buffers():
        torch.testing.assert_close(ours, theirs[name], msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_state_dict_fits_both(variant: str) -> None:
    with torch.device("meta"):
        model, plain = RevBiFPN(variant), PlainRevBiFPN(variant)
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (model, plain)]
    assert shapes[0] == shapes[1]


def test_random_parts_have_the_variants_rates() -> None:
    from timm.layers import DropPath

    with torch.device("meta"):
        model, plain = RevBiFPN("s3"), PlainRevBiFPN("s3")
    rates = [[(n, p.drop_prob) for n, p in m.named_modules() if isinstance(p, DropPath)] for m in (model, plain)]
    assert rates[0] == rates[1]
    assert rates[0]
    assert model.head.drop_rate == plain.head.drop_rate == VARIANTS["s3"].drop_rate


def test_the_documented_example_runs() -> None:
    results = doctest.testmod(benchmarks.plain)
    assert results.attempted
    assert not results.failed
