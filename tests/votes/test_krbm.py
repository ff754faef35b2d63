"""K-RBM: its equations, Dawid and Skene's EM as its special case, and what holds of every run."""

from __future__ import annotations

import itertools

import crowdkit.aggregation
import numpy as np
import pandas as pd
import pytest
import torch

from revbifpn.votes import KRBM, VoteError, machines
from revbifpn.votes.machines import Machines, Votes
from tests.votes.crowds import crowd_votes, dawid_skene

# Sums in another order, over some thousand numbers in float64.
SAME = {"rtol": 0, "atol": 1e-9}


def in_torch(table: object) -> Votes:
    codes = [torch.from_numpy(getattr(table, name)) for name in ("task", "worker", "label")]
    return Votes(*codes, len(table.tasks), len(table.workers), len(table.classes))  # type: ignore[attr-defined]


def random_machines(votes: Votes, hidden: int, scale: float = 1.0) -> Machines:
    generator = torch.Generator().manual_seed(1)
    count = votes.num_labels

    def draw(*shape: int) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    smoothing = torch.zeros(count, count, dtype=torch.float64)
    workers = votes.num_workers
    return Machines(draw(workers, count, count), draw(count, hidden), draw(workers, count, count, hidden), smoothing)


def test_without_hidden_units_it_is_dawid_and_skenes_em() -> None:
    """Turn by turn: after as many turns the probabilities are those of a few lines of EM, in each number of classes."""
    for classes, turns in ((2, 1), (3, 2), (4, 7)):
        table, _ = crowd_votes(classes=classes, seed=classes)
        found = KRBM(n_hidden=0, n_iter=turns, tol=0, smoothing=0.5).fit_predict_proba(table.frame())
        np.testing.assert_allclose(found.to_numpy(), dawid_skene(table, turns, 0.5), **SAME)


@pytest.mark.filterwarnings("ignore::Warning")  # of pandas, at what crowd-kit calls
def test_without_hidden_units_and_smoothing_it_is_crowd_kits_dawid_skene() -> None:
    table, _ = crowd_votes(items=120, votes=6)
    theirs = crowdkit.aggregation.DawidSkene(n_iter=200, tol=1e-12)
    expected = theirs.fit_predict_proba(table.frame()).sort_index().sort_index(axis=1)
    ours = KRBM(n_hidden=0, n_iter=200, tol=1e-12, smoothing=1e-9)
    # Theirs lets no count be below 1e-10, ours adds a third of 1e-9 votes to each.
    np.testing.assert_allclose(ours.fit_predict_proba(table.frame()), expected, rtol=0, atol=1e-5)
    assert ours.fit_predict(table.frame()).tolist() == theirs.labels_.sort_index().tolist()
    np.testing.assert_allclose(ours.priors_, theirs.priors_.sort_index(), rtol=0, atol=1e-5)


def test_probabilities_of_a_machine_are_those_of_its_energy() -> None:
    """E(v, h) = -a.v - b.h - v'Wh, summed over all states of a machine of three workers, two labels, two hidden units."""
    item, worker = torch.zeros(3, dtype=torch.long), torch.arange(3)
    votes = Votes(item, worker, torch.tensor([1, 0, 1]), 1, 3, 2)
    made = random_machines(votes, hidden=2)
    states = list(itertools.product((0, 1), repeat=2))

    def weight(machine: int, labels: tuple[int, ...], hidden: tuple[int, ...]) -> float:
        h = torch.tensor(hidden, dtype=torch.float64)
        energy = -made.b[machine] @ h
        for m, label in enumerate(labels):
            energy = energy - made.a[m, machine, label] - made.w[m, machine, label] @ h
        return float(torch.exp(-energy))

    for machine in range(2):
        weights = {hidden: weight(machine, (1, 0, 1), hidden) for hidden in states}
        for unit in range(2):
            expected = sum(w for h, w in weights.items() if h[unit]) / sum(weights.values())
            assert made.hidden(votes)[0, machine, unit].item() == pytest.approx(expected, abs=1e-12)
        for hidden in states:
            given = torch.tensor(hidden, dtype=torch.float64).expand(1, 2, 2)
            total = sum(weight(machine, labels, hidden) for labels in itertools.product((0, 1), repeat=3))
            for m, label in itertools.product(range(3), (0, 1)):
                own = [labels for labels in itertools.product((0, 1), repeat=3) if labels[m] == label]
                expected = sum(weight(machine, labels, hidden) for labels in own) / total
                assert made.log_votes(votes, given)[m, machine, label].exp().item() == pytest.approx(expected, abs=1e-12)


def test_missing_votes_are_left_out() -> None:
    """An item's machines see the same whether or not there are workers who did not vote on it."""
    table, _ = crowd_votes(items=6, votes=4)
    votes = in_torch(table)
    made = random_machines(votes, hidden=2)
    together = made.log_reconstruction(votes)
    for item in range(votes.num_items):
        own = votes.item == item
        alone = Votes(votes.item[own] - item, votes.worker[own], votes.label[own], 1, votes.num_workers, votes.num_labels)
        torch.testing.assert_close(made.log_reconstruction(alone)[0], together[item], rtol=0, atol=1e-12)


def test_a_step_of_contrastive_divergence_is_the_rule() -> None:
    """Positive less negative statistics, worker by worker in loops; hidden units decided, so that nothing is drawn."""
    table, _ = crowd_votes(items=5, votes=3, workers=5)
    votes = in_torch(table)
    made = random_machines(votes, hidden=2, scale=0.3)
    made.b[:] = torch.tensor([60.0, -60.0])  # one unit always on, one always off: samples are no matter of chance
    count, workers = votes.num_labels, votes.num_workers
    share = torch.softmax(torch.randn(5, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 1)
    a, w = made.a.clone(), made.w.clone()
    da, dw, given = torch.zeros_like(a), torch.zeros_like(w), torch.zeros(workers, count, dtype=torch.float64)
    hidden = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for n, m, label in zip(table.task, table.worker, table.label, strict=True):
        for k in range(count):
            again = torch.softmax(a[m, k] + w[m, k] @ hidden, 0)
            difference = torch.eye(count, dtype=torch.float64)[label] - again
            da[m, k] += share[n, k] * difference
            dw[m, k] += share[n, k] * difference[:, None] * hidden
            given[m, k] += share[n, k]
    made.contrastive_divergence(votes, share, rate=0.5, momentum=0.9, generator=torch.Generator())
    voted = given > 0
    torch.testing.assert_close((made.a - a)[voted], (0.5 * da / given[..., None])[voted], rtol=0, atol=1e-10)
    torch.testing.assert_close((made.w - w)[voted], (0.5 * dw / given[..., None, None])[voted], rtol=0, atol=1e-10)


def test_learning_makes_machines_reconstruct_better() -> None:
    """Votes that go wrong together on every third item: frequencies of single workers cannot say so, hidden units can."""
    rows = [(item, worker, int(item % 3 == 0)) for item in range(90) for worker in range(6)]
    item, worker, label = (torch.tensor(column) for column in zip(*rows, strict=True))
    votes = Votes(item, worker, label, 90, 6, 2)
    share = torch.ones(90, 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    made = Machines.start(votes, share, 2, torch.full((1, 2), 0.5, dtype=torch.float64), 1.0, generator)
    before = made.log_reconstruction(votes).mean().item()
    for _ in range(300):
        made.contrastive_divergence(votes, share, 0.1, 0.5, generator)
    assert before == pytest.approx(6 * (np.log(1 / 3) + 2 * np.log(2 / 3)) / 3, abs=0.05)
    assert made.log_reconstruction(votes).mean().item() > before / 2


@pytest.mark.parametrize("hidden", [0, 2])
def test_votes_in_parts_are_votes_at_once(hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = crowd_votes()
    once = KRBM(n_hidden=hidden, n_iter=5).fit_predict_proba(table.frame())
    for chunk in (1, 500):
        monkeypatch.setattr(machines, "CHUNK", chunk)
        np.testing.assert_allclose(KRBM(n_hidden=hidden, n_iter=5).fit_predict_proba(table.frame()), once, **SAME)


@pytest.mark.parametrize("hidden", [0, 1, 3])
@pytest.mark.parametrize("soft", [True, False])
def test_labels_are_better_than_the_majoritys_and_rows_are_probabilities(hidden: int, soft: bool) -> None:
    table, truth = crowd_votes(items=300, classes=3, votes=5, accuracy=0.7, spammers=0.34, workers=15)
    model = KRBM(n_hidden=hidden, soft=soft)
    labels = model.fit_predict(table.frame())
    majority = table.counts.argmax(1)
    # Worth three items and more of 300, where a third of the workers answer without looking.
    assert (labels.to_numpy() == truth).mean() > (majority == truth).mean() + 0.01
    probas = model.probas_.to_numpy()
    np.testing.assert_allclose(probas.sum(1), 1, **SAME)
    assert (model.probas_.columns[probas.argmax(1)] == labels).all()
    if not soft:
        assert set(np.unique(probas)) == {0.0, 1.0}
    assert labels.name == "agg_label"
    assert (labels.index.name, model.probas_.index.name) == ("task", "task")
    assert model.skills_.between(0, 1).all()
    assert list(model.skills_.index) == list(range(15))


def test_neither_rows_nor_names_matter_and_a_seed_is_a_result() -> None:
    table, _ = crowd_votes()
    frame = table.frame()
    first = KRBM(random_state=3).fit_predict_proba(frame)
    mixed = frame.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(KRBM(random_state=3).fit_predict_proba(mixed), first, check_exact=True)
    text = frame.assign(
        label=frame["label"].map({0: "ant", 1: "bee", 2: "cat"}), worker="w" + (frame["worker"] + 10).astype(str)
    )
    named = KRBM(random_state=3).fit_predict_proba(text)
    assert list(named.columns) == ["ant", "bee", "cat"]
    np.testing.assert_array_equal(named.to_numpy(), first.to_numpy())
    assert not np.array_equal(KRBM(random_state=4).fit_predict_proba(frame).to_numpy(), first.to_numpy())
    # Other numbers for the classes: the same classes, if nothing is drawn.
    turned = KRBM(n_hidden=0).fit_predict_proba(frame.assign(label=(frame["label"] + 1) % 3))
    np.testing.assert_allclose(turned.to_numpy()[:, [1, 2, 0]], KRBM(n_hidden=0).fit_predict_proba(frame), **SAME)


def test_of_several_runs_the_one_that_reconstructs_best_is_kept() -> None:
    table, _ = crowd_votes()
    costs = [KRBM(random_state=seed, n_iter=5).fit(table.frame()).cost_ for seed in range(3)]
    assert len(set(costs)) == 3
    assert KRBM(random_state=0, n_iter=5, n_restarts=3).fit(table.frame()).cost_ == min(costs)


def test_a_machine_without_items_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class with one clear item among many of another: by hard assignment the rare machine would die out at once."""
    rows = [(item, worker, 0) for item in range(60) for worker in range(4)]
    rows += [("last", worker, label) for worker, label in enumerate((1, 1, 1, 0))]
    frame = pd.DataFrame([(str(task), worker, label) for task, worker, label in rows], columns=["task", "worker", "label"])
    model = KRBM(n_hidden=1, soft=False, n_iter=1, smoothing=50.0)
    assert model.fit(frame).probas_.loc["last"].tolist() == [0.25, 0.75]


def test_ordered_levels_are_smoothed_towards_their_neighbours() -> None:
    """A worker seen once says nothing about levels that were never given: those are thought to be near the true level."""
    model = KRBM(ordered=True, smoothing=2.0)
    near = model._smoothing(np.array([0, 1, 2, 3]))
    torch.testing.assert_close(near.sum(1), torch.full((4,), 2.0, dtype=torch.float64))
    assert near[0, 0] > near[0, 1] > near[0, 2] > near[0, 3] > 0
    table, truth = crowd_votes(items=60, classes=5, votes=3, ordinal=True, accuracy=0.5, spammers=0, workers=30)
    errors = {}
    for ordered in (False, True):
        found = KRBM(n_hidden=0, ordered=ordered, smoothing=4.0).fit_predict_proba(table.frame()).to_numpy()
        errors[ordered] = np.abs((found.cumsum(1) >= 0.5).argmax(1) - truth).mean()
    assert errors[True] < errors[False]
    with pytest.raises(VoteError, match="ordered=True needs labels that are numbers, got high, low"):
        KRBM(ordered=True).fit(pd.DataFrame({"task": [0, 1], "worker": [0, 0], "label": ["low", "high"]}))


def test_small_cases() -> None:
    one = pd.DataFrame({"task": ["a"], "worker": ["w"], "label": ["x"]})
    for hidden in (0, 2):
        assert KRBM(n_hidden=hidden).fit_predict_proba(one).to_numpy().tolist() == [[1.0]]
        tied = pd.DataFrame({"task": [0, 0, 1], "worker": [0, 1, 2], "label": ["x", "y", "x"]})
        assert np.isfinite(KRBM(n_hidden=hidden).fit_predict_proba(tied).to_numpy()).all()
    empty = KRBM().fit(one.iloc[:0])
    assert empty.labels_.empty
    assert empty.probas_.empty


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_hidden": -1}, "n_hidden must not be negative, got -1"),
        ({"n_iter": 0}, "n_iter must be more than 0, got 0"),
        ({"smoothing": 0}, "smoothing must be more than 0, got 0"),
        ({"temperature": float("nan")}, "temperature must be more than 0, got nan"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(VoteError, match=message):
        KRBM(**settings).fit(pd.DataFrame({"task": [0], "worker": [0], "label": [0]}))  # type: ignore[arg-type]
