"""Every method by its name: better than chance on simulated votes, right on the odd ones, or a line that says why not."""

from __future__ import annotations

import re
from dataclasses import replace

import crowdkit.aggregation
import numpy as np
import pytest

from revbifpn.votes import KRBM, METHODS, VoteError, aggregate
from revbifpn.votes.table import VoteTable, make_table
from tests.votes.crowds import crowd_votes

# Short runs: what is tested here is what goes in and comes out.
QUICK = {"glad": {"n_iter": 5}, "mace": {"n_restarts": 2, "n_iter": 10}, "k-rbm": {"n_iter": 10}}
#: Methods that take any number of classes and no known labels.
GENERAL = [name for name in METHODS if name not in ("kos", "gold-majority")]

pytestmark = pytest.mark.filterwarnings("ignore::Warning:crowdkit")


def quick(table: VoteTable, method: str, **options: object) -> object:
    return aggregate(table, method, settings=QUICK.get(method), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_finds_most_labels(method: str, classes: int) -> None:
    table, truth = crowd_votes(items=100, classes=classes, votes=6, accuracy=0.8)
    gold = {str(item): str(label) for item, label in enumerate(truth)} if method == "gold-majority" else None
    if method == "kos" and classes > 2:
        with pytest.raises(VoteError, match="kos is for votes between two classes, these are between 3"):
            quick(table, method)
        return
    result = quick(table, method, gold=gold)
    # Of 100 items; the majority has 84 of them in two classes, and gold is what it weighs by.
    assert (result.labels == truth).mean() > 0.8  # type: ignore[attr-defined]
    if method != "kos":
        np.testing.assert_allclose(result.probas.sum(1), 1, rtol=0, atol=1e-6)  # type: ignore[attr-defined]
        assert (result.probas.argmax(1) == result.labels).all()  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", GENERAL)
def test_the_order_of_rows_and_absent_classes_do_not_matter(method: str) -> None:
    """Numbers are exactly the same, as all methods get the votes in one order; a class that nobody votes for has none."""
    table, _ = crowd_votes(items=30, workers=6, votes=4)
    rows = [
        (table.tasks[task], table.workers[worker], ("0", "2", "3")[label])
        for task, worker, label in zip(table.task, table.worker, table.label, strict=True)
    ]
    mixed = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    one, other = (make_table(votes, ["0", "1", "2", "3"]) for votes in (rows, mixed))
    first, second = quick(one, method), quick(other, method)
    np.testing.assert_array_equal(first.probas, second.probas)  # type: ignore[attr-defined]
    assert (first.probas[:, 1] == 0).all()  # type: ignore[attr-defined]
    plain = quick(table, method)
    np.testing.assert_allclose(first.probas[:, [0, 2, 3]], plain.probas, rtol=0, atol=1e-9)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", [*GENERAL, "kos"])
def test_items_with_one_vote_ties_and_workers_with_one_vote(method: str) -> None:
    """Either every item has a label and probabilities, or the method says that it cannot."""
    table, _ = crowd_votes(items=20, classes=2, votes=4, workers=6)
    rows = [
        (table.tasks[task], table.workers[worker], table.classes[label])
        for task, worker, label in zip(table.task, table.worker, table.label, strict=True)
    ]
    rows += [("alone", "stranger", "1"), ("tied", "2", "0"), ("tied", "3", "1")]
    votes = make_table(rows)
    if method == "kos":
        with pytest.raises(VoteError, match="kos is undecided on some items, such as those with one vote: choose another"):
            quick(votes, method)
        return
    result = quick(votes, method)
    assert len(result.labels) == len(votes.tasks)  # type: ignore[attr-defined]
    assert set(result.labels) <= {0, 1}  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", [*GENERAL, "kos"])
def test_votes_for_one_class_alone(method: str) -> None:
    result = aggregate(make_table([("a", "w", "cat"), ("b", "v", "cat")], ["ant", "cat"]), method)
    assert result.labels.tolist() == [1, 1]
    assert result.probas.tolist() == [[0, 1], [0, 1]]


def test_ties_go_to_the_first_class() -> None:
    table = make_table([("a", "w", "dog"), ("a", "v", "cat")])
    assert aggregate(table, "majority").label_table()["label"].tolist() == ["cat"]


def test_workers_keep_their_skill() -> None:
    """The best of the workers stands before the spammer, under the right name, in each method that measures workers."""
    rng = np.random.default_rng(0)
    rows = []
    for item, true in enumerate(rng.integers(0, 3, 60)):
        for worker in range(8):
            right = {1: 0.0, 6: 1.0}.get(worker, 0.7)
            label = true if rng.random() < right else rng.integers(0, 3) if worker != 1 else 0
            rows.append((f"i{item}", f"w{worker}", str(label)))
    table = make_table(rows)
    for method in GENERAL:
        skill = quick(table, method).found.skill  # type: ignore[attr-defined]
        assert (skill is None) == (METHODS[method].skill == "")
        if skill is not None:
            assert skill.argmax() == 6, method
            assert skill.argmin() == 1, method


def test_mace_does_not_depend_on_the_order_in_which_workers_appear() -> None:
    """crowd-kit's own call does: it takes the order of appearance for the sorted one, and so mixes the workers up."""
    table, truth = crowd_votes(items=100, classes=2, votes=6, accuracy=0.75, spammers=0.4)
    settings = {"n_restarts": 1, "n_iter": 20}
    ours = aggregate(table, "mace", settings=settings)
    backwards = table.frame().sort_values("worker", ascending=False, kind="stable")
    theirs = crowdkit.aggregation.MACE(**settings).fit_predict_proba(backwards).sort_index()[[0, 1]]
    assert np.abs(theirs.to_numpy() - ours.probas).max() > 0.01
    renamed = replace(table, worker=len(table.workers) - 1 - table.worker)
    again = aggregate(renamed, "mace", settings=settings)
    assert (again.labels == ours.labels).mean() > 0.97  # another random start for each worker
    assert (ours.labels == truth).mean() > (table.counts.argmax(1) == truth).mean()


def test_restarts_of_mace_differ() -> None:
    """From an integer crowd-kit draws the same start each time, so ten restarts would be one run ten times."""
    table, _ = crowd_votes(items=40, classes=3, votes=4)
    starts = []

    class Watched(crowdkit.aggregation.MACE):
        def _initialize(self, n_workers: int, n_labels: int) -> None:
            super()._initialize(n_workers, n_labels)
            starts.append(self.spamming_.copy())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crowdkit.aggregation, "MACE", Watched)
        aggregate(table, "mace", settings={"n_restarts": 2, "n_iter": 1})
    assert not np.array_equal(*starts)


def test_dawid_skene_and_majority_are_crowd_kits() -> None:
    table, _ = crowd_votes()
    for method, kind in (("dawid-skene", crowdkit.aggregation.DawidSkene), ("majority", crowdkit.aggregation.MajorityVote)):
        theirs = kind().fit_predict_proba(table.frame()).sort_index().sort_index(axis=1)
        np.testing.assert_allclose(aggregate(table, method).probas, theirs, rtol=0, atol=1e-9)


def test_known_labels_are_used_where_they_can_be() -> None:
    table, truth = crowd_votes(classes=2)
    gold = {str(item): str(1 - truth[item]) for item in range(30)}  # wrong on purpose: they must win over the votes
    result = aggregate(table, "dawid-skene", gold={**gold, "elsewhere": "0"})
    assert (result.labels[:30] != truth[:30]).mean() > 0.8
    with pytest.raises(VoteError, match="glad cannot use known labels; dawid-skene, gold-majority can"):
        aggregate(table, "glad", gold=gold)
    with pytest.raises(VoteError, match="gold-majority needs known labels of some items"):
        aggregate(table, "gold-majority")
    with pytest.raises(VoteError, match=r"gold-majority: \d+ workers voted on no item with a known label \('\d+', "):
        aggregate(table, "gold-majority", gold={"0": "1"})
    with pytest.raises(VoteError, match="gold has labels that are none of the classes '0', '1': '7'"):
        aggregate(table, "dawid-skene", gold={"0": "7"})
    more = make_table([("a", "v", "x"), ("a", "w", "y")], ["x", "y", "z"])
    with pytest.raises(VoteError, match="gold has 'z', which no vote is for"):
        aggregate(more, "dawid-skene", gold={"a": "z"})


def test_what_cannot_be_done_is_said() -> None:
    table, _ = crowd_votes()
    with pytest.raises(VoteError, match=re.escape("there is no method 'best': choose from majority, dawid-skene, ")):
        aggregate(table, "best")
    with pytest.raises(VoteError, match="GLAD has no such setting: .*'depth'"):
        aggregate(table, "glad", settings={"depth": 3})
    two = make_table([("a", "v", "x"), ("a", "w", "y")])
    with pytest.raises(VoteError, match="mmsr compares workers in pairs and needs three of them or more, the votes are of 2"):
        aggregate(two, "mmsr")


def test_progress_is_shown_and_settings_reach_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    table, _ = crowd_votes(items=20, classes=2)
    for method, title in (("dawid-skene", "Dawid-Skene"), ("one-coin", "one-coin"), ("mmsr", "M-MSR"), ("k-rbm", "K-RBM")):
        quick(table, method, progress=True)
        assert f"{title}:" in capsys.readouterr().err
        quick(table, method)
        assert not capsys.readouterr().err
    expected = KRBM(n_hidden=1, n_iter=3, random_state=5).fit_predict_proba(table.frame()).to_numpy()
    found = aggregate(table, "k-rbm", seed=5, settings={"n_hidden": 1, "n_iter": 3})
    # Workers are numbered in another order, and so draw other weights; the machines are nearly the same.
    np.testing.assert_allclose(found.probas, expected, rtol=0, atol=0.02)
