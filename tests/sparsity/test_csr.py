"""CSR layers: equal results, and the choice by time, for which the tests replace the stopwatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from revbifpn.sparsity import csr
from revbifpn.sparsity.csr import CSRConv2d, CSRLinear, is_candidate, use_csr
from revbifpn.sparsity.prune import prune
from tests.sparsity.networks import SmallNet, correlated, small_net, tiny_revbifpn

IMAGES = correlated(2)


def pruned() -> SmallNet:
    model = small_net()
    prune(model, None, 0.8, method="magnitude")
    return model


def stopwatch(monkeypatch: pytest.MonkeyPatch, times: Sequence[tuple[float, float]]) -> None:
    """Let the next comparisons take these times."""
    left = list(times)

    def in_turns(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
        return list(left.pop(0))

    monkeypatch.setattr(csr, "in_turns", in_turns)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_layers_give_the_same(bias: bool, batch: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, 12, 5, 7)
    conv, linear = nn.Conv2d(12, 9, 1, bias=bias), nn.Linear(12, 9, bias=bias)
    for layer in (conv, linear):
        layer.weight.data[layer.weight.data.abs() < 0.15] = 0
    with torch.no_grad():
        for inputs in (x, x.contiguous(memory_format=torch.channels_last)):
            # float32 sums of 12 products in another order
            torch.testing.assert_close(CSRConv2d(conv)(inputs), conv(inputs), rtol=1e-5, atol=1e-6)
        for inputs in (x[:, :, 0, 0], x.permute(0, 2, 3, 1)):
            torch.testing.assert_close(CSRLinear(linear)(inputs), linear(inputs), rtol=1e-5, atol=1e-6)


def test_only_layers_that_gained_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned()
    stopwatch(monkeypatch, [(2.0, 1.0), (1.0, 0.95), (5.0, 4.0)])  # point, hidden, the whole network
    changed, timing = use_csr(model, IMAGES)
    assert [(layer.name, layer.used, layer.gain) for layer in timing.layers] == [
        ("point", True, 2.0),
        ("hidden", False, pytest.approx(1 / 0.95)),
    ]
    assert isinstance(changed.point, CSRConv2d)
    assert type(changed.hidden) is nn.Linear
    assert type(model.point) is nn.Conv2d
    assert timing.layers[0].input == (2, 16, 6, 6)
    assert timing.layers[0].density == pytest.approx(0.2, abs=0.01)
    assert "| point | 2x16x6x6 | 0.201 | 2000000.0 | 1000000.0 | 2.00 | yes |" in timing.table()
    assert "| whole network | | | 5000000.0 | 4000000.0 | 1.25 | 1 of 2 layers |" in timing.table()
    with torch.no_grad():
        torch.testing.assert_close(changed(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_nothing_is_changed_where_the_whole_network_does_not_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch(monkeypatch, [(2.0, 1.0), (2.0, 1.0), (4.0, 5.0)])
    changed, timing = use_csr(pruned(), IMAGES)
    assert type(changed.point) is nn.Conv2d
    assert not any(layer.used for layer in timing.layers)
    assert "| whole network | | | 4000000.0 | 5000000.0 | 0.80 | 0 of 2 layers |" in timing.table()


def test_a_revbifpn_with_every_layer_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_revbifpn()
    prune(model, None, 0.8, method="magnitude")
    images = correlated(1, 64)
    monkeypatch.setattr(csr, "in_turns", lambda calls, repeats: [call() is None or 2.0 for call in calls[:1]] + [1.0])
    changed, timing = use_csr(model, images)
    assert len(timing.layers) > 20
    assert all(layer.used for layer in timing.layers)
    with torch.no_grad():
        # Each layer rounds anew; the network's depth adds that up.
        torch.testing.assert_close(changed(images), model(images), rtol=1e-3, atol=1e-4)
    assert sum(isinstance(module, CSRConv2d) for module in changed.modules()) == len(timing.layers)


def test_real_times_are_measured() -> None:
    _, timing = use_csr(pruned(), IMAGES, repeats=3)
    assert all(0 < layer.dense < 1 for layer in timing.layers)
    assert all(layer.csr > 0 for layer in timing.layers)


def test_candidates() -> None:
    assert is_candidate(nn.Conv2d(4, 8, 1))
    assert is_candidate(nn.Linear(4, 8))
    others = [nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 1, 2), nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(4, 8, 1, padding=1)]
    assert not any(map(is_candidate, [*others, nn.ReLU()]))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"for inference: call model.eval\(\)"):
        use_csr(pruned().train(), IMAGES)
    with pytest.raises(ValueError, match="SmallNet has no 1x1 convolution or linear layer with zeros"):
        use_csr(small_net(), IMAGES)
    with pytest.raises(ValueError, match="is for the CPU"):
        use_csr(pruned(), IMAGES.to("meta"))


def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CSRConv2d, "forward", lambda self, x: x.new_zeros(2, 24, 6, 6))
    with pytest.raises(RuntimeError, match="CSRConv2d differs by"):
        use_csr(pruned(), IMAGES)
