"""Simulated annotators do what they are said to do."""

from __future__ import annotations

import numpy as np
import pytest

from revbifpn.votes.simulate import Crowd, simulate_votes


def test_votes_follow_the_confusion_matrices() -> None:
    truth = np.random.default_rng(0).integers(0, 3, 3000)
    table, confusion = simulate_votes(truth, 3, 2, Crowd(workers=4, spammers=0.25, adversaries=0.25))
    np.testing.assert_allclose(confusion.sum(2), 1)
    counts = np.zeros_like(confusion)
    np.add.at(counts, (table.worker, truth[table.task], table.label), 1)
    # 500 votes a worker and class: a standard error of 0.022 at most, five of them.
    np.testing.assert_allclose(counts / counts.sum(2, keepdims=True), confusion, rtol=0, atol=0.11)
    assert (table.counts.sum(1) == 2).all()
    assert sorted(np.trace(confusion, axis1=1, axis2=2).round(6))[0] == 0.3  # the adversary


def test_ordinal_errors_are_of_one_level_and_hard_items_are_a_coin() -> None:
    truth = np.repeat(np.arange(4), 200)
    table, _ = simulate_votes(truth, 4, 3, Crowd(spammers=0, ordinal=True))
    assert np.abs(table.label - truth[table.task]).max() == 1
    table, _ = simulate_votes(truth, 4, 5, Crowd(spammers=0, accuracy=0.95, concentration=50, hard_items=1.0))
    assert (table.label == truth[table.task]).mean() == pytest.approx(0.5, abs=0.05)
    assert ((table.counts > 0).sum(1) <= 2).all()


def test_a_seed_is_a_crowd() -> None:
    truth = np.arange(20) % 2
    one, two, other = (simulate_votes(truth, 2, 3, Crowd(), seed)[0].label.tolist() for seed in (1, 1, 2))
    assert one == two != other
    with pytest.raises(ValueError, match="votes_per_item must be 1 to 20, the number of workers, got 21"):
        simulate_votes(truth, 2, 21, Crowd())
