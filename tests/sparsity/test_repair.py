"""Statistics of batch norms, against those computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from revbifpn.sparsity.repair import repair_statistics
from tests.sparsity.networks import correlated, small_net, tiny_revbifpn

BATCHES = [correlated(6, seed=seed) for seed in (3, 4)]


def test_statistics_are_the_averages_over_batches() -> None:
    model = small_net(dropout=0.9)
    momenta = [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    updates = int(model.stem_norm.num_batches_tracked)
    assert repair_statistics(model, iter(BATCHES)) == 3
    # The second norm comes after the dropout, and sees batch-normalised maps; so compute both by hand.
    means, variances = [], []
    with torch.no_grad():
        for batch in BATCHES:
            x = model.stem(batch)
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            x = (x - mean[:, None, None]) / (variance[:, None, None] + model.stem_norm.eps).sqrt()
            x = x * model.stem_norm.weight[:, None, None] + model.stem_norm.bias[:, None, None]
            x = model.grouped(x.relu())  # no dropout
            means.append(x.mean((0, 2, 3)))
            variances.append(x.var((0, 2, 3)))
    torch.testing.assert_close(model.grouped_norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.grouped_norm.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5)
    assert int(model.stem_norm.num_batches_tracked) == updates
    assert [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)] == momenta
    assert not any(module.training for module in model.modules())


def test_right_statistics_stay_as_they_are() -> None:
    """Of RevBiFPN too, whose layers run edges themselves: repaired twice is repaired once."""
    model, images = tiny_revbifpn(), [correlated(8, 64)]
    total = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert repair_statistics(model, images) == total
    once = {key: value.clone() for key, value in model.state_dict().items()}
    assert repair_statistics(model, images) == total
    assert all(torch.equal(once[key], value) for key, value in model.state_dict().items())
    first = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    seen: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(images[0])
    handle.remove()
    torch.testing.assert_close(first.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first.running_var, seen[0].var((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_norms_that_are_not_reached_keep_theirs() -> None:
    model = small_net()
    model.spare = nn.BatchNorm2d(4)
    model.spare.running_mean.fill_(3.0)
    model.untracked = nn.BatchNorm2d(4, track_running_stats=False)
    assert repair_statistics(model, BATCHES) == 3
    assert model.spare.running_mean.tolist() == [3.0] * 4


@pytest.mark.parametrize(("batches", "error"), [([], ValueError), ([BATCHES[0], torch.zeros(2, 4, 8, 8)], RuntimeError)])
def test_a_failure_changes_nothing(batches: list[Tensor], error: type[Exception]) -> None:
    model = small_net().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error):
        repair_statistics(model, batches)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert model.stem_norm.momentum == 0.1


def test_networks_without_batch_norms_have_nothing_to_repair() -> None:
    assert repair_statistics(nn.Conv2d(3, 4, 1), BATCHES) == 0
