"""Workers' reliability, agreement, what to vote on again, and the tables that are made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import cohen_kappa_score

from revbifpn.votes import VoteError, aggregate
from revbifpn.votes.reliability import krippendorff_alpha, worker_reliability
from revbifpn.votes.table import VoteTable, make_table
from tests.votes.crowds import crowd_votes

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section E: four observers, twelve units, missing data.
OBSERVERS = {
    "A": "1 2 3 3 2 1 4 1 2 . . .",
    "B": "1 2 3 3 2 2 4 1 2 5 . 3",
    "C": ". 3 3 3 2 3 4 2 2 5 1 .",
    "D": "1 2 3 3 2 4 4 1 2 5 1 .",
}


def published() -> VoteTable:
    rows = [
        (str(unit), worker, value)
        for worker, values in OBSERVERS.items()
        for unit, value in enumerate(values.split())
        if value != "."
    ]
    return make_table(rows)


def test_agreement_is_the_published_one() -> None:
    assert krippendorff_alpha(published()) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(published(), ordered=True) == pytest.approx(0.815, abs=5e-4)


def test_agreement_without_pairs_or_without_disagreement() -> None:
    assert krippendorff_alpha(make_table([("a", "v", "x"), ("b", "w", "y")])) is None
    assert krippendorff_alpha(make_table([("a", "v", "x"), ("a", "w", "x"), ("b", "v", "y"), ("b", "w", "y")])) == 1
    assert krippendorff_alpha(make_table([("a", "v", "x"), ("a", "w", "x")])) == 1
    assert "not defined: no item has two votes" in str(aggregate(make_table([("a", "v", "x"), ("b", "w", "y")]), "majority"))


@pytest.mark.parametrize("ordered", [False, True])
def test_kappa_is_cohens_where_the_labels_are_certain(ordered: bool) -> None:
    table, truth = crowd_votes(items=120, classes=4, ordinal=True)
    found = worker_reliability(table, np.eye(4)[truth], ordered)
    for place in range(len(table.workers)):
        own = table.worker == place
        votes, right = table.label[own], truth[table.task[own]]
        kappa = cohen_kappa_score(votes, right, labels=range(4), weights="quadratic" if ordered else None)
        row = found.iloc[place]
        assert row["worker"] == table.workers[place]
        assert row["votes"] == own.sum()
        assert row["accuracy"] == pytest.approx((votes == right).mean())
        assert row["kappa"] == pytest.approx(kappa)
        if ordered:
            assert row["mean_error"] == pytest.approx(np.abs(votes - right).mean())
    assert ("mean_error" in found) == ordered


def test_spammers_are_found_out() -> None:
    """A worker who always says the most frequent class is often right, and no better than chance."""
    rows = [(str(item), f"w{worker}", "1" if item % 5 == 0 else "0") for item in range(50) for worker in range(3)]
    rows += [(str(item), "spammer", "0") for item in range(50)]
    rows += [("0", "once", "1")]
    found = aggregate(make_table(rows), "majority").worker_table().set_index("worker")
    assert found.loc["spammer", "accuracy"] > 0.75
    assert found.loc["spammer", "kappa"] == pytest.approx(0, abs=1e-9)
    assert found.loc["w0", "kappa"] > 0.8  # the spammer's votes count too, so the majority is not sure
    assert (found["votes"] == [1, 50, 50, 50, 50]).all()
    certain = worker_reliability(make_table([("a", "once", "x"), ("b", "other", "y")]), np.eye(2))
    assert certain["kappa"].isna().all()


def test_levels_get_the_median() -> None:
    rows = [("a", f"w{worker}", level) for worker, level in enumerate("00033")]
    rows += [("b", f"w{worker}", level) for worker, level in enumerate("01233")]
    table = make_table(rows, list("0123"))
    nominal, ordered = (aggregate(table, "majority", ordered=ordered) for ordered in (False, True))
    assert nominal.label_table()["label"].tolist() == ["0", "3"]
    labels = ordered.label_table()
    assert labels["label"].tolist() == ["0", "2"]
    assert labels["expected_level"].tolist() == pytest.approx([1.2, 1.8])
    assert labels["expected_error"].tolist() == pytest.approx([1.2, 1.0])
    even = make_table([("a", "v", "1"), ("a", "w", "3")], list("0123"))
    assert aggregate(even, "majority", ordered=True).label_table()["label"].tolist() == ["1"]
    text = make_table([("a", "v", "low"), ("a", "w", "high")])
    with pytest.raises(VoteError, match="the levels 'high', 'low' are no numbers: give all classes in their order"):
        aggregate(text, ordered=True)
    given = make_table([("a", "v", "low"), ("a", "w", "high")], ["low", "high"])
    assert aggregate(given, "majority", ordered=True).label_table()["label"].tolist() == ["low"]


def test_doubtful_items_come_first_and_of_equals_those_with_few_votes() -> None:
    rows = [("sure", f"w{worker}", "x") for worker in range(4)]
    rows += [("one", "w0", "x"), ("half", "w0", "x"), ("half", "w1", "y")]
    rows += [("halves", f"w{worker}", "xy"[worker % 2]) for worker in range(4)]
    review = aggregate(make_table(rows), "majority").review_table()
    assert review["task"].tolist() == ["half", "halves", "one", "sure"]
    assert review["expected_error"].tolist() == [0.5, 0.5, 0, 0]
    assert review["votes"].tolist() == [2, 4, 1, 4]


def test_targets_are_what_cross_entropy_takes() -> None:
    table, _ = crowd_votes(items=12)
    result = aggregate(table, "dawid-skene")
    targets = torch.from_numpy(result.targets(["7", "3"], ["2", "never", "0", "1"]))
    assert targets.dtype == torch.float32
    np.testing.assert_allclose(targets[:, [2, 3, 0]], result.probas[[7, 3]], rtol=0, atol=1e-7)
    assert (targets[:, 1] == 0).all()
    assert F.cross_entropy(torch.zeros(2, 4), targets).item() == pytest.approx(np.log(4), rel=1e-6)
    with pytest.raises(VoteError, match="2 items have no votes: 'x', 'y'"):
        result.targets(["x", "3", "y"])
    with pytest.raises(VoteError, match="votes were given for classes that are not asked for: '2'"):
        result.targets(["3"], ["0", "1"])


def test_a_method_without_probabilities() -> None:
    table, truth = crowd_votes(items=60, classes=2, votes=6)
    result = aggregate(table, "kos")
    with pytest.raises(VoteError, match="kos gives labels without probabilities: choose another method for soft labels"):
        result.soft_label_table()
    assert result.label_table()["expected_error"].between(0, 1).all()
    assert result.worker_table()["accuracy"].between(0, 1).all()
    assert (result.labels == truth).mean() > 0.85


def test_summary_counts() -> None:
    table = make_table([("a", "v", "x"), ("a", "w", "y"), ("b", "v", "y")], ["x", "y", "z"])
    assert aggregate(table, "majority").summary() == {
        **{"method": "majority", "items": 2, "workers": 2, "votes": 3, "classes": ["x", "y", "z"]},
        **{"votes_by_class": [1, 2, 0], "items_by_label": [1, 1, 0], "items_with_one_vote": 1, "items_tied": 1},
        **{"krippendorff_alpha": 0.0, "alpha_distance": "nominal", "skill": None},
    }
