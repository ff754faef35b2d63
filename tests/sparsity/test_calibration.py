"""Inputs of layers, against what the layer itself computes with a weight that is 1 in one place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from revbifpn.sparsity.calibration import LayerCalls, positions_of, second_moments
from revbifpn.sparsity.criteria import as_matrix

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "3x3": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "without padding": lambda: nn.Conv2d(4, 6, 3),
    "stride": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilation": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "groups": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "oblong": lambda: nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "same, even kernel": lambda: nn.Conv2d(4, 6, (2, 4), padding="same"),
    "valid": lambda: nn.Conv2d(4, 6, 2, padding="valid"),
    "reflected": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "circular, groups": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", groups=2),
    "timm's same": lambda: Conv2dSame(4, 6, 3, stride=2),
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "linear": lambda: nn.Linear(4, 6),
}


def design_matrix(layer: nn.Module, x: Tensor, row: int) -> Tensor:
    """(positions, columns): what each weight of a row is multiplied by, as the layer's output for a weight of 1 there."""
    weight, places = layer.weight, as_matrix(torch.arange(layer.weight[row].numel()).view_as(layer.weight[row])[None])[0]
    columns = []
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
        for place in places.tolist():
            weight.zero_()
            weight[row].view(-1)[place] = 1
            output = layer(x)
            columns.append((output[:, row] if weight.ndim == 4 else output[..., row]).flatten())
    return torch.stack(columns, 1).double()


def moments(layer: nn.Module, x: Tensor, most: int = 10**6) -> tuple[Tensor, int, int]:
    found = []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), LayerCalls({"w": layer.weight}, lambda name, call: found.append((name, call))):
        layer(x)
    ((name, call),) = found
    assert name == "w"
    return *second_moments(call, most, generator), positions_of(call)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", LAYERS)
def test_second_moments_are_those_of_the_layers_inputs(kind: str, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    if isinstance(layer, nn.Linear):
        x = torch.randn(3, 7, 4)
    else:
        x = torch.randn(3, 4, 7, 9).contiguous(memory_format=memory_format)
    sums, count, positions = moments(layer, x)
    groups = getattr(layer, "groups", 1)
    assert len(sums) == groups
    for group in range(groups):
        design = design_matrix(layer, x, group * (6 // groups))
        assert len(design) == count == positions
        # Both are sums of products of the same float32 numbers, in float64.
        torch.testing.assert_close(sums[group], design.T @ design, rtol=1e-12, atol=1e-12)


def test_a_choice_of_positions_is_a_part_of_them() -> None:
    torch.manual_seed(0)
    layer, x = LAYERS["groups"](), torch.randn(3, 4, 7, 9)
    sums, count, positions = moments(layer, x, most=1)
    assert (count, positions) == (1, 3 * 7 * 9)
    for group in range(2):
        windows = design_matrix(layer, x, 3 * group)
        nearest = [float((window.outer(window) - sums[group]).abs().max()) for window in windows]
        assert min(nearest) < 1e-12
    whole, _, _ = moments(layer, x, most=positions)
    assert torch.linalg.matrix_rank(whole[0]) == 18


def test_other_layers_are_not_seen() -> None:
    seen = []
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    with LayerCalls({"second": layers[1].weight}, lambda name, call: seen.append((name, call.input.shape))):
        layers(torch.randn(1, 3, 2, 2))
    assert seen == [("second", (1, 4, 2, 2))]
