"""Outputs against their equations, written once more in the plainest way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from revbifpn.models.clips import OUTPUTS, make_output

LEVELS = 4
LOGITS = torch.randn(6, LEVELS - 1, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 3, 1])
KINDS = list(OUTPUTS)


def corn(z: Tensor, y: Tensor) -> float:
    """Task k sees the samples with y >= k; the divisor is the number of (sample, task) pairs."""
    total, pairs = 0.0, 0
    for k in range(LEVELS - 1):
        for n in range(len(y)):
            if y[n] >= k:
                p = float(z[n, k].double().sigmoid())
                total -= float(torch.tensor(p if y[n] > k else 1 - p, dtype=torch.float64).log())
                pairs += 1
    return total / pairs


def coral(z: Tensor, y: Tensor) -> float:
    targets = (y[:, None] > torch.arange(LEVELS - 1)).double()
    p = z.double().sigmoid()
    return float(-(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1).mean())


def cumulative(z: Tensor, y: Tensor) -> float:
    above = torch.cat([torch.ones(len(z), 1), z.double().sigmoid(), torch.zeros(len(z), 1)], 1)
    p = above[:, :-1] - above[:, 1:]
    return float(-p[range(len(y)), y].log().mean())


@pytest.mark.parametrize(("kind", "expected"), [("corn", corn), ("coral", coral), ("cumulative_link", cumulative)])
def test_ordinal_losses(kind: str, expected: object) -> None:
    z = LOGITS.sort(1, descending=True).values  # what a cumulative link returns; CORN and CORAL take any
    loss = make_output(5, LEVELS, kind).loss(z, LABELS)
    assert float(loss) == pytest.approx(expected(z, LABELS), rel=1e-5)  # type: ignore[operator]


def test_nominal_loss() -> None:
    z = torch.randn(6, LEVELS)
    torch.testing.assert_close(make_output(5, LEVELS).loss(z, LABELS), F.cross_entropy(z, LABELS))


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def make(self, kind: str) -> tuple[torch.nn.Module, Tensor]:
        torch.manual_seed(0)
        output = make_output(5, LEVELS, kind)
        return output, output(torch.randn(6, 5))

    def test_certain_soft_labels_are_hard_ones(self, kind: str) -> None:
        output, logits = self.make(kind)
        soft = F.one_hot(LABELS, LEVELS).float()
        torch.testing.assert_close(output.loss(logits, soft), output.loss(logits, LABELS))

    def test_soft_labels_mix_hard_ones(self, kind: str) -> None:
        """A clip that is half 1 and half 2 costs the mean of both (CORN's divisor is a mean too)."""
        output, logits = self.make(kind)
        half = torch.tensor([[0.0, 0.5, 0.5, 0.0]])
        one, two = (output.loss(logits[:1], torch.tensor([level])) for level in (1, 2))
        tasks = {1: 2, 2: 3} if kind == "corn" else {1: 1, 2: 1}
        expected = (one * tasks[1] + two * tasks[2]) / (tasks[1] + tasks[2])
        torch.testing.assert_close(output.loss(logits[:1], half), expected)

    def test_missing_labels_do_not_count(self, kind: str) -> None:
        output, logits = self.make(kind)
        some = LABELS.clone()
        some[[1, 4]] = -1
        known = [0, 2, 3, 5]
        torch.testing.assert_close(output.loss(logits, some), output.loss(logits[known], LABELS[known]))
        soft = F.one_hot(LABELS, LEVELS).float()
        soft[[1, 4]] = float("nan")
        torch.testing.assert_close(output.loss(logits, soft), output.loss(logits[known], LABELS[known]))

    def test_no_label_at_all_gives_zero_and_finite_gradients(self, kind: str) -> None:
        output, logits = self.make(kind)
        loss = output.loss(logits, torch.full((6,), -1))
        loss.backward()
        assert loss.item() == 0
        assert all(bool(param.grad.eq(0).all()) for param in output.parameters())

    def test_class_weights_multiply_samples(self, kind: str) -> None:
        output, logits = self.make(kind)
        before = output.loss(logits, LABELS)
        output.set_class_weights([0.5] * LEVELS)
        torch.testing.assert_close(output.loss(logits, LABELS), before / 2)
        output.set_class_weights([1, 0, 0, 0])
        zeros = LABELS.where(LABELS == 0, 1)
        output.set_class_weights([0, 0, 1, 1])
        assert output.loss(logits, zeros).item() == 0

    def test_probabilities_and_levels(self, kind: str) -> None:
        output, logits = self.make(kind)
        p = output.probabilities(logits)
        torch.testing.assert_close(p.sum(1), torch.ones(6))
        assert p.shape == (6, LEVELS)
        median = (p.flip(1).cumsum(1).flip(1)[:, 1:] > 0.5).sum(1)
        assert torch.equal(output.predict(logits), p.argmax(1) if kind == "nominal" else median)

    def test_learns_levels_from_a_feature_that_orders_them(self, kind: str) -> None:
        torch.manual_seed(0)
        output = make_output(1, LEVELS, kind)
        y = torch.arange(64) % LEVELS
        x = y[:, None].float() - 1.5
        optimizer = torch.optim.Adam(output.parameters(), lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            output.loss(output(x), y).backward()
            optimizer.step()
        assert float((output.predict(output(x)) == y).float().mean()) == 1

    def test_extreme_logits_stay_finite(self, kind: str) -> None:
        output = make_output(1, LEVELS, kind)
        logits = (output(torch.tensor([[-1.0], [1.0]])) * 1e4).detach().requires_grad_()
        loss = output.loss(logits, torch.tensor([0, 0]))
        loss.backward()
        assert bool(loss.isfinite())
        assert bool(logits.grad.isfinite().all())

    def test_two_levels(self, kind: str) -> None:
        output = make_output(3, 2, kind)
        logits = output(torch.randn(4, 3))
        assert output.probabilities(logits).shape == (4, 2)
        assert bool(output.loss(logits, torch.tensor([0, 1, 1, -1])).isfinite())


def test_thresholds_stay_in_order() -> None:
    output = make_output(3, 5, "cumulative_link")
    torch.testing.assert_close(output.thresholds(), torch.tensor([-1.5, -0.5, 0.5, 1.5]))
    output.gaps.data.fill_(-100.0)
    assert bool((output.thresholds().diff() > 0).all())


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="one of nominal, corn, coral, cumulative_link, got 'ordinal'"):
        make_output(3, 4, "ordinal")
    with pytest.raises(ValueError, match="2 levels at least, got 1"):
        make_output(3, 1)
    output = make_output(3, 4, "corn")
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.3, or -1 where missing, got \[4\]"):
        output.loss(torch.zeros(1, 3), torch.tensor([4]))
    with pytest.raises(ValueError, match=r"soft labels must be of shape \(N, 4\), got \(1, 3\)"):
        output.loss(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="class weights must be 4 numbers"):
        output.set_class_weights([1, 2])
