"""Small reversible models that the engine's tests share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from revbifpn.reversible import RevBlock, ReversibleSequential, RevSilo, StreamWise

CHANNELS = (4, 6, 8)


class Edge(nn.Sequential):
    """A smooth edge (gradcheck needs derivatives): convolution, optional norm, tanh; resampled by ``2 ** (j - i)``."""

    def __init__(self, i: int, j: int, channels: tuple[int, ...] = CHANNELS, norm: bool = False, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels[i], channels[j], 3, stride=max(1, 2 ** (j - i)), padding=1)]
        if norm:
            layers.append(nn.BatchNorm2d(channels[j]))
        layers.append(nn.Tanh())
        if dropout:
            layers.append(nn.Dropout(dropout))
        if j < i:
            layers.append(nn.Upsample(scale_factor=2 ** (i - j), mode="bilinear"))
        super().__init__(*layers)


def silo(num_inputs: int, num_outputs: int, **kwargs: object) -> RevSilo:
    streams = range(num_outputs)
    return RevSilo(
        down={(i, j): Edge(i, j, **kwargs) for i in range(num_inputs) for j in streams if i < j},  # type: ignore[arg-type]
        up={(i, j): Edge(i, j, **kwargs) for i in streams for j in streams if i > j},  # type: ignore[arg-type]
        num_inputs=num_inputs,
    )


def blocks(num_streams: int, depth: int = 2, **kwargs: object) -> StreamWise:
    def half(stream: int) -> Edge:
        return Edge(0, 0, channels=(CHANNELS[stream] // 2,), **kwargs)  # type: ignore[arg-type]

    return StreamWise([RevBlock(half(s), half(s)) for _ in range(depth)] for s in range(num_streams))


def pyramid(exact: bool = False, **kwargs: object) -> ReversibleSequential:
    """One stream in, three out: blocks and silos in turn, two of them adding a stream."""
    torch.manual_seed(0)
    return ReversibleSequential(
        blocks(1, **kwargs),
        silo(1, 2, **kwargs),
        blocks(2, **kwargs),
        silo(2, 3, **kwargs),
        blocks(3, **kwargs),
        silo(3, 3, **kwargs),
        exact=exact,
    )


def streams(count: int = 1, batch: int = 2, size: int = 8, dtype: torch.dtype = torch.float32, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, CHANNELS[i], size >> i, size >> i, generator=generator, dtype=torch.float64).to(dtype)
        for i in range(count)
    ]


def loss_of(outputs: tuple[Tensor, ...]) -> Tensor:
    """A loss in which every output counts differently."""
    return sum(((i + 1) * output.float().sin().sum() for i, output in enumerate(outputs)), torch.zeros(()))


def gradients(model: nn.Module, inputs: list[Tensor], seed: int = 5) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of the inputs and of the parameters after one forward and backward pass."""
    model.zero_grad()
    torch.manual_seed(seed)
    leaves = [x.clone().requires_grad_() for x in inputs]
    loss_of(model(*leaves)).backward()
    return [x.grad for x in leaves], [p.grad for p in model.parameters()]


def assert_same_gradients(ours: list[Tensor | None], theirs: list[Tensor | None], rtol: float, atol: float) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def worst_error(ours: Mapping[str, Tensor | None], theirs: Mapping[str, Tensor | None]) -> tuple[float, str]:
    """The largest relative error of all tensors, and whose it is; None equals None alone.

    Each tensor is looked at by itself, the norm of the difference over its norm, so that a small one is not lost beside
    large ones. A norm counts as a thousandth of the largest at least: of a norm's bias in front of another norm the true
    gradient is zero, and what is there is rounding.
    """
    assert ours.keys() == theirs.keys()
    floor = 1e-3 * max(float(value.norm()) for value in theirs.values() if value is not None)
    worst = (0.0, "")
    for name, wanted in theirs.items():
        found = ours[name]
        assert (found is None) == (wanted is None), f"{name}: a gradient in one of the two alone"
        if found is not None and wanted is not None:
            difference = float((found.double() - wanted.double()).norm())
            worst = max(worst, (difference / max(float(wanted.norm()), floor), name))
    return worst


def parameter_gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: param.grad for name, param in model.named_parameters()}
