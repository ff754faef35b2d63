"""The object that keeps a network sparse: counts, order within a step, what grows."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revbifpn.sparsity import MaskError, SparseTraining
from revbifpn.sparsity.algorithms import METHODS, Schedule
from tests.sparsity.common import batch, sgd, small_network, sparse_sgd, train, zeros

N1, N2 = 1152, 2304  # weights of conv1 and conv2


def assert_consistent(model: nn.Module, sparse: SparseTraining) -> None:
    """Weights and momentum are zero where the masks drop."""
    for name, weight in sparse.weights.items():
        dropped = ~sparse.masks[name]
        assert not weight.detach()[dropped].any()
        for value in sparse.optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                assert not value[dropped].any()


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
@pytest.mark.parametrize(("sparsity", "counts"), [(0.9, (1036, 2073)), (0.75, (864, 1728)), (0.0, (0, 0))])
def test_counts_of_zeros_are_exact_through_the_training(method: str, sparsity: float, counts: tuple[int, int]) -> None:
    model = small_network()
    keys = list(model.state_dict())
    kinds = [type(p) for p in model.parameters()]
    sparse = sparse_sgd(model, method, sparsity=sparsity)
    for step in range(16):
        assert tuple(m.numel() - int(m.sum()) for m in sparse.masks.values()) == counts
        assert_consistent(model, sparse)
        assert zeros(model.stem.weight) == zeros(model.fc.weight) == zeros(model.depthwise.weight) == 0
        train(model, sparse, range(step, step + 1))
    # Kept entries that are zero: only some that have grown, whose momentum has not moved them yet.
    assert abs(zeros(model.conv1.weight) - counts[0]) <= 4
    assert list(model.state_dict()) == keys
    assert [type(p) for p in model.parameters()] == kinds
    assert sparse.density == pytest.approx(1 - sum(counts) / (N1 + N2))


def test_static_masks_stay_and_dynamic_ones_change() -> None:
    changed = {}
    for method in ("static", "set", "rigl"):
        model = small_network()
        sparse = sparse_sgd(model, method)
        before = {name: mask.clone() for name, mask in sparse.masks.items()}
        train(model, sparse, range(8))
        changed[method] = [not torch.equal(before[name], sparse.masks[name]) for name in before]
    assert changed == {"static": [False, False], "set": [True, True], "rigl": [True, True]}


def test_rigl_grows_the_largest_dense_gradients_and_drops_the_smallest_weights() -> None:
    model = small_network()
    sparse = sparse_sgd(model, "rigl", update_every=1)
    images, labels = batch(0)
    F.cross_entropy(model(images), labels).backward()
    before = sparse.masks["conv1.weight"].clone().flatten()
    gradient = model.conv1.weight.grad.detach().clone().flatten()
    sparse.step()
    after = sparse.masks["conv1.weight"].flatten()
    kept, drops = int(before.sum()), int(sparse.schedule.alpha(1) * int(before.sum()))
    assert drops > 10
    # A naive form: the step that plain SGD takes with masked gradients, then sorting in Python.
    reference = small_network()
    plain = sgd(reference)
    weight = reference.conv1.weight
    with torch.no_grad():
        weight.mul_(before.view_as(weight))
        weight.grad = (gradient * before).view_as(weight)
    plain.step()
    values = weight.detach().flatten()
    order = sorted((i for i in range(N1) if before[i]), key=lambda i: float(values[i].abs()), reverse=True)
    survivors = set(order[: kept - drops])
    others = sorted((i for i in range(N1) if i not in survivors), key=lambda i: float(gradient[i].abs()), reverse=True)
    expected = survivors | set(others[:drops])
    assert set(after.nonzero().flatten().tolist()) == expected
    new = after & ~before
    assert new.any()
    assert not model.conv1.weight.detach().flatten()[new].any()  # begins at zero


def test_set_grows_at_random_by_the_seed_alone() -> None:
    def masks(seed: int) -> dict[str, Tensor]:
        model = small_network()
        sparse = sparse_sgd(model, "set", seed=seed)
        train(model, sparse, range(4))
        return sparse.masks

    first, again, other = masks(0), masks(0), masks(1)
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_masks_change_between_begin_and_end_only() -> None:
    schedule = Schedule("set", begin=4, end=12, update_every=3)
    assert [t for t in range(1, 30) if schedule.acts_at(t)] == [6, 9]
    assert schedule.alpha(4) == pytest.approx(0.3)
    assert schedule.alpha(8) == pytest.approx(0.15)
    assert schedule.alpha(12) == pytest.approx(0.0)


def test_gradual_pruning_follows_the_cubic_and_ends_exactly() -> None:
    model = small_network()
    sparse = sparse_sgd(model, "gradual", sparsity=0.8, end=10)
    counts = [zeros(model.conv2.weight)]
    for step in range(12):
        train(model, sparse, range(step, step + 1))
        counts.append(N2 - int(sparse.masks["conv2.weight"].sum()))
        assert_consistent(model, sparse)
    final = int(0.8 * N2)
    cubic = {t: int(final * (1 - (1 - t / 10) ** 3) + 1e-6) for t in (3, 6, 9, 10)}
    assert counts == [0] * 3 + [cubic[3]] * 3 + [cubic[6]] * 3 + [cubic[9], cubic[10], final, final]


def test_gradual_pruning_drops_the_smallest_weights() -> None:
    model = small_network()
    sparse = sparse_sgd(model, "gradual", sparsity=0.8, end=6)
    train(model, sparse, range(2))
    images, labels = batch(2)
    sparse.optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    other = copy.deepcopy(model)
    reference = sgd(other)
    reference.load_state_dict(copy.deepcopy(sparse.optimizer.state_dict()))
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        its.grad = mine.grad.clone()
    reference.step()
    sparse.step()
    dropped = sorted(other.conv2.weight.detach().abs().flatten().tolist())[: N2 - int(sparse.masks["conv2.weight"].sum())]
    kept = model.conv2.weight.detach().abs()[sparse.masks["conv2.weight"]]
    assert dropped[-1] <= float(kept.min())


def test_dense_from_lifts_the_masks_and_revived_weights_begin_at_zero() -> None:
    model = small_network()
    sparse = sparse_sgd(model, "static", dense_from=3)
    train(model, sparse, range(3))
    assert sparse.density == 1
    assert zeros(model.conv1.weight) == 1036
    train(model, sparse, range(3, 6))
    assert zeros(model.conv1.weight) < 10


def test_accumulated_gradients_are_the_sum_that_rigl_reads() -> None:
    """Two halves with half the loss each grow the same weights as the whole batch, with norms in eval mode."""

    def masks(parts: int) -> dict[str, Tensor]:
        model = small_network().eval()
        sparse = sparse_sgd(model, "rigl", update_every=1)
        images, labels = batch(0)
        for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            (F.cross_entropy(model(x), y) / parts).backward()
        sparse.step()
        return sparse.masks

    whole, halves, last_half_alone = masks(1), masks(2), sparse_of_last_half()
    for name in whole:
        assert torch.equal(whole[name], halves[name])
        assert not torch.equal(whole[name], last_half_alone[name])


def sparse_of_last_half() -> dict[str, Tensor]:
    model = small_network().eval()
    sparse = sparse_sgd(model, "rigl", update_every=1)
    images, labels = batch(0)
    F.cross_entropy(model(images[4:]), labels[4:]).backward()
    sparse.step()
    return sparse.masks


@pytest.mark.parametrize("method", ["static", "rigl"])
def test_masked_gradients_are_clipped_not_dense_ones(method: str) -> None:
    model = small_network()
    sparse = sparse_sgd(model, method, update_every=1)
    images, labels = batch(0)
    F.cross_entropy(model(images), labels).backward()
    dense_norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    expected = [p.grad.clone() for p in model.parameters()]
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        if name in sparse.masks:
            gradient *= sparse.masks[name]
    norm = sparse.step(max_norm=0.01)
    assert norm is not None
    torch.testing.assert_close(norm, nn.utils.get_total_norm(expected))
    assert norm < 0.99 * dense_norm


def test_a_loop_that_calls_the_optimizer_itself_trains_the_same() -> None:
    """torch's hooks do it all; with clipping the loop calls mask_gradients first."""
    weights = []
    for own_loop in (False, True):
        model = small_network()
        sparse = sparse_sgd(model, "rigl")
        for step in range(8):
            images, labels = batch(step)
            sparse.optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            if own_loop:
                if step % 2:
                    sparse.mask_gradients()
                sparse.optimizer.step()
            else:
                sparse.step()
        weights.append(model.conv1.weight)
        assert sparse.steps == 8
    assert torch.equal(*weights)


def test_loss_scaling_trains_as_without_it_and_leaves_overflowing_steps_out() -> None:
    plain, scaled = small_network(), small_network()
    a, b = sparse_sgd(plain, "rigl"), sparse_sgd(scaled, "rigl")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for step in range(8):
        train(plain, a, range(step, step + 1))
        images, labels = batch(step)
        b.optimizer.zero_grad()
        scaler.scale(F.cross_entropy(scaled(images), labels)).backward()
        b.step(scaler=scaler, max_norm=1e6)
    # The scale is a power of two: it changes no bit; clipping multiplies by one at most.
    for name in a.masks:
        assert torch.equal(a.masks[name], b.masks[name])
        assert torch.equal(a.weights[name], b.weights[name])
    before = {name: mask.clone() for name, mask in b.masks.items()}
    weights = [p.detach().clone() for p in scaled.parameters()]
    b.optimizer.zero_grad()
    scaler.scale(F.cross_entropy(scaled(images), labels) * float("inf")).backward()
    b.step(scaler=scaler)
    assert b.steps == 8
    assert all(torch.equal(before[name], b.masks[name]) for name in before)
    assert all(torch.equal(x, y) for x, y in zip(weights, scaled.parameters(), strict=True))
    train(scaled, b, range(8, 9))  # step 9 changes the masks, by its own gradients
    train(plain, a, range(8, 9))
    assert not all(torch.equal(before[name], b.masks[name]) for name in before)
    assert all(torch.equal(a.masks[name], b.masks[name]) for name in before)


def test_weights_without_a_gradient_and_frozen_weights() -> None:
    model = small_network()
    model.conv2.weight.requires_grad_(False)
    sparse = sparse_sgd(model, "rigl", update_every=1)
    assert list(sparse.masks) == ["conv1.weight"]
    model.conv1.weight.grad = None
    sparse.step()  # no gradient at all: nothing to read, counts stay
    assert N1 - int(sparse.masks["conv1.weight"].sum()) == 1036


def test_initial_masks_by_magnitude_by_zeros_and_given() -> None:
    model = small_network()
    largest = model.conv1.weight.detach().abs().flatten().sort(descending=True).values[: N1 - 1036]
    sparse = sparse_sgd(model, masks="magnitude")
    kept = model.conv1.weight.detach().abs()[sparse.masks["conv1.weight"]]
    assert torch.equal(kept.sort(descending=True).values, largest)

    other = small_network(seed=1)
    other.load_state_dict(model.state_dict())
    found = sparse_sgd(other, sparsity=None, masks="zeros")
    given = sparse_sgd(small_network(), sparsity=None, masks=sparse.masks)
    for name in sparse.masks:
        assert torch.equal(found.masks[name], sparse.masks[name])
        assert torch.equal(given.masks[name], sparse.masks[name])
    assert zeros(given.weights["conv1.weight"]) == 1036


def test_a_tracked_average_has_the_masks_zeros_at_all_times() -> None:
    from timm.utils import ModelEmaV3

    model = small_network()
    ema = ModelEmaV3(model, decay=0.9, foreach=True)
    sparse = sparse_sgd(model, "rigl")
    sparse.track(ema.module)
    for step in range(10):
        train(model, sparse, range(step, step + 1))
        ema.update(model)
        averaged = dict(ema.module.named_parameters())
        for name, mask in sparse.masks.items():
            assert not averaged[name][~mask].any()
    assert not torch.equal(ema.module.conv1.weight, model.conv1.weight)
    with pytest.raises(MaskError, match=r"Linear is no copy of the network: it has no conv1\.weight"):
        sparse.track(nn.Linear(2, 2))


def test_hooks_can_be_taken_off() -> None:
    model = small_network()
    sparse = sparse_sgd(model)
    sparse.remove()
    images, labels = batch(0)
    F.cross_entropy(model(images), labels).backward()
    sparse.optimizer.step()
    assert zeros(model.conv1.weight) < 10


def test_every_method_is_tested_above() -> None:
    assert METHODS == ("static", "set", "rigl", "gradual")
