"""Ways to aggregate votes, by name: crowd-kit's, and K-RBM. Each returns what the others do.

Four things that crowd-kit 1.4.2 leaves to its user are seen to here. MACE takes the workers' order of appearance for their
sorted order, so workers are numbered as they appear. MACE's restarts from an integer seed are all the same run, so it gets a
generator. M-MSR divides by sums of weights that may be negative, so its probabilities are computed here from its weights.
Methods that weigh a majority vote ask scikit-learn whether they are fitted, which 1.6 and later refuse, so the vote is taken
here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from crowdkit import aggregation as crowdkit
from tqdm import tqdm

from revbifpn.votes.krbm import KRBM
from revbifpn.votes.table import VoteError, VoteTable, some

Floats = npt.NDArray[np.float64]
_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Options:
    """What a method may be told.

    Attributes:
        seed: of a method that draws random numbers.
        ordered: the classes are levels in their order.
        progress: whether to show a bar on stderr.
        gold: (N,) known classes of items, -1 where unknown; None if there are none.
        settings: further arguments of the method's own class.
    """

    seed: int = 0
    ordered: bool = False
    progress: bool = False
    gold: npt.NDArray[np.int64] | None = None
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Estimate:
    """What a method found.

    Attributes:
        labels: (N,) the items' classes.
        probas: (N, K) their probabilities; None if the method has none.
        skill: (W,) the method's own measure of the workers; None if it has none.
    """

    labels: npt.NDArray[np.int64]
    probas: Floats | None
    skill: Floats | None


@dataclass(frozen=True)
class Method:
    """A way to aggregate votes.

    Attributes:
        title: its name in tables.
        run: does it.
        random: whether another seed may give another result.
        skill: what its measure of a worker is; empty if it has none.
        needs_gold, takes_gold: whether it must have, or can use, known labels.
    """

    title: str
    run: Callable[[pd.DataFrame, VoteTable, Options], Estimate]
    random: bool = False
    skill: str = ""
    needs_gold: bool = False
    takes_gold: bool = False


def estimate(table: VoteTable, method: str, options: Options) -> Estimate:
    """Run a method.

    Args:
        table: the votes.
        method: one of :data:`METHODS`.
        options: what to tell it.

    Raises:
        VoteError: for an unknown method or setting, votes that the method is not made for, and a method that finds nothing.
    """
    if method not in METHODS:
        raise VoteError(f"there is no method {method!r}: choose from {', '.join(METHODS)}")
    chosen = METHODS[method]
    known = options.gold is not None and bool((options.gold >= 0).any())
    if chosen.needs_gold and not known:
        raise VoteError(f"{method} needs known labels of some items (gold)")
    if known and not chosen.takes_gold:
        raise VoteError(
            f"{method} cannot use known labels; " + ", ".join(n for n, m in METHODS.items() if m.takes_gold) + " can"
        )
    present = np.unique(table.label)
    if len(present) == 1:  # several methods divide by the number of the other classes
        return _unanimous(table, int(present[0]))
    # Sorted by class, so that classes appear in their order, and workers numbered as they appear (see above).
    order = np.lexsort((table.task, table.worker, table.label))
    frame = table.frame().iloc[order].reset_index(drop=True)
    codes, workers = pd.factorize(frame["worker"])
    frame["worker"] = codes
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # crowd-kit's calls of pandas that are to go
        found = chosen.run(frame, table, options)
    skill = None
    if found.skill is not None:
        skill = np.empty(len(table.workers))
        skill[workers] = found.skill
    if found.probas is not None:
        _check_probabilities(found.probas, table, method)
    return replace(found, skill=skill)


def _unanimous(table: VoteTable, label: int) -> Estimate:
    labels = np.full(len(table.tasks), label)
    return Estimate(labels, np.eye(len(table.classes))[labels], None)


def _check_probabilities(probas: Floats, table: VoteTable, method: str) -> None:
    wrong = ~(np.isfinite(probas).all(1) & (probas >= 0).all(1) & (np.abs(probas.sum(1) - 1) < _SUM_TOLERANCE))
    if wrong.any():
        names = [table.tasks[place] for place in np.flatnonzero(wrong)]
        raise VoteError(f"{method} finds no probabilities for {len(names)} items ({some(names)}): choose another method")


def _aggregator(kind: type, options: Options, **defaults: Any) -> Any:
    settings = {**defaults, **(options.settings or {})}
    try:
        return kind(**settings)
    except TypeError as error:
        raise VoteError(f"{kind.__name__} has no such setting: {error}") from None


def _full(probas: pd.DataFrame, table: VoteTable) -> Floats:
    """(N, K) from crowd-kit's tasks x labels, which lacks the classes that nobody votes for."""
    wide = probas.reindex(index=range(len(table.tasks)), columns=range(len(table.classes)))
    absent = np.setdiff1d(np.arange(len(table.classes)), np.unique(table.label))
    wide[absent] = 0.0
    values: Floats = wide.to_numpy(np.float64)
    return values / values.sum(1, keepdims=True)


def _with(probas: Floats, skill: pd.Series | None) -> Estimate:
    """Of classes that are equally probable the first one is taken."""
    values = None if skill is None else skill.reindex(range(len(skill))).to_numpy(np.float64)
    return Estimate(np.nan_to_num(probas).argmax(1), probas, values)


def _plain(kind: type, frame: pd.DataFrame, table: VoteTable, options: Options) -> Estimate:
    """Wawa, Zero-Based Skill: shares of the votes, weighted by skill."""
    return _weighted(_aggregator(kind, options).fit(frame).skills_, frame, table)


def _weighted(skill: pd.Series, frame: pd.DataFrame, table: VoteTable) -> Estimate:
    return _with(_full(crowdkit.MajorityVote().fit_predict_proba(frame, skill), table), skill)


def _majority(frame: pd.DataFrame, table: VoteTable, options: Options) -> Estimate:
    return _with(_full(_aggregator(crowdkit.MajorityVote, options).fit_predict_proba(frame), table), None)


def _gold_majority(frame: pd.DataFrame, table: VoteTable, options: Options) -> Estimate:
    gold = _gold(options)
    if untested := sorted(set(table.worker.tolist()) - set(table.worker[np.isin(table.task, gold.index)].tolist())):
        names = [table.workers[place] for place in untested]
        raise VoteError(f"gold-majority: {len(names)} workers voted on no item with a known label ({some(names)})")
    return _weighted(_aggregator(crowdkit.GoldMajorityVote, options).fit(frame, gold).skills_, frame, table)


def _gold(options: Options) -> pd.Series:
    assert options.gold is not None
    known = np.flatnonzero(options.gold >= 0)
    return pd.Series(options.gold[known], index=known)


def _dawid_skene(frame: pd.DataFrame, table: VoteTable, options: Options) -> Estimate:
    aggregator = _aggregator(crowdkit.DawidSkene, options)
    gold = None if options.gold is None else _gold(options)
    if gold is not None and (unseen := np.setdiff1d(gold, table.label)).size:
        raise VoteError(f"gold has {table.classes[unseen[0]]!r}, which no vote is for: dawid-skene cannot learn that class")
    with _watched(aggregator, "_m_step", aggregator.n_iter + 1, "Dawid-Skene", options.progress):
        probas = aggregator.fit_predict_proba(frame, gold)
    errors = aggregator.errors_.reset_index()
    right = [
        row[label] * aggregator.priors_[label] for row, label in zip(errors.to_dict("records"), errors["label"], strict=True)
    ]
    skill = pd.Series(right).groupby(errors["worker"]).sum()
    return _with(_full(probas, table), skill)


def _one_coin(frame: pd.DataFrame, table: VoteTable, options: Options) -> Estimate:
    aggregator = _aggregator(crowdkit.OneCoinDawidSkene, options)
    with _watched(aggregator, "_m_step", aggregator.n_iter + 1, "one-coin", options.progress):
        probas = aggregator.fit_predict_proba(frame)
    return _with(_full(probas, table), aggregator.skills_)


def _glad(frame: pd.DataFrame, table: VoteTable, options: Options) -> Estimate:
    aggregator = _aggregator(crowdkit.GLAD, options, silent=not options.progress)
    return _with(_full(aggregator.fit_predict_proba(frame), table), aggregator.alphas_)


def _mace(frame: pd.DataFrame, table: VoteTable, options: Options) -> Estimate:
    generator = np.random.RandomState(options.seed)
    aggregator = _aggregator(crowdkit.MACE, options, random_state=generator, verbose=int(options.progress))
    probas = aggregator.fit_predict_proba(frame)
    spamming, knowing = aggregator.spamming_.T
    return _with(_full(probas, table), pd.Series(knowing / (spamming + knowing)))


def _mmsr(frame: pd.DataFrame, table: VoteTable, options: Options) -> Estimate:
    """The weights are the log odds of one-coin workers, so the posterior is the softmax of the weighted votes."""
    aggregator = _aggregator(crowdkit.MMSR, options, random_state=options.seed)
    workers = frame["worker"].nunique()
    if workers < 3:
        raise VoteError(f"mmsr compares workers in pairs and needs three of them or more, the votes are of {workers}")
    part = "_remove_largest_and_smallest_F_value"
    with _watched(aggregator, part, aggregator.n_iter * 2 * workers, "M-MSR", options.progress):
        try:
            aggregator.fit(frame)
        except (ArithmeticError, ValueError, RuntimeError, np.linalg.LinAlgError) as error:
            raise VoteError(f"mmsr finds no weights for these workers ({error}): choose another method") from error
    weights = aggregator.skills_.reindex(range(workers)).to_numpy(np.float64)
    score = np.zeros(table.counts.shape)
    np.add.at(score, (frame["task"].to_numpy(), frame["label"].to_numpy()), weights[frame["worker"].to_numpy()])
    score[:, np.setdiff1d(np.arange(len(table.classes)), np.unique(table.label))] = -np.inf
    chances = np.exp(score - score.max(1, keepdims=True))
    return _with(chances / chances.sum(1, keepdims=True), pd.Series(weights))


def _kos(frame: pd.DataFrame, table: VoteTable, options: Options) -> Estimate:
    if (classes := len(np.unique(table.label))) != 2:
        raise VoteError(f"kos is for votes between two classes, these are between {classes}: choose another method")
    aggregator = _aggregator(crowdkit.KOS, options, random_state=options.seed)
    state = np.random.get_state()  # KOS seeds numpy's own
    try:
        labels = aggregator.fit_predict(frame)
    except KeyError as error:  # the sign of 0 is neither class
        raise VoteError("kos is undecided on some items, such as those with one vote: choose another method") from error
    finally:
        np.random.set_state(state)
    return Estimate(labels.reindex(range(len(table.tasks))).to_numpy(np.int64), None, None)


def _krbm(frame: pd.DataFrame, table: VoteTable, options: Options) -> Estimate:
    defaults = {"random_state": options.seed, "ordered": options.ordered, "verbose": options.progress}
    aggregator = _aggregator(KRBM, options, **defaults)
    return _with(_full(aggregator.fit_predict_proba(frame), table), aggregator.skills_)


class _watched:
    """Shows a progress bar that counts the calls of a part of an aggregator which has no bar of its own."""

    def __init__(self, aggregator: Any, part: str, total: int, title: str, shown: bool) -> None:
        self.aggregator, self.part = aggregator, part
        self.bar = tqdm(total=total, desc=title, unit="step", disable=not shown, leave=False)

    def __enter__(self) -> None:
        function = getattr(self.aggregator, self.part)

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.bar.update()
            return function(*args, **kwargs)

        setattr(self.aggregator, self.part, counted)

    def __exit__(self, *error: object) -> None:
        delattr(self.aggregator, self.part)
        self.bar.close()


METHODS: dict[str, Method] = {
    "majority": Method("majority vote", _majority),
    "dawid-skene": Method("Dawid-Skene", _dawid_skene, skill="accuracy", takes_gold=True),
    "one-coin": Method("one-coin Dawid-Skene", _one_coin, skill="accuracy"),
    "glad": Method("GLAD", _glad, skill="alpha"),
    "mace": Method("MACE", _mace, random=True, skill="chance of not spamming"),
    "mmsr": Method("M-MSR", _mmsr, random=True, skill="log odds"),
    "kos": Method("KOS", _kos, random=True),
    "wawa": Method("Wawa", functools.partial(_plain, crowdkit.Wawa), skill="agreement with the majority"),
    "zero-based-skill": Method(
        "Zero-Based Skill", functools.partial(_plain, crowdkit.ZeroBasedSkill), skill="agreement with the aggregate"
    ),
    "gold-majority": Method(
        "majority by gold accuracy", _gold_majority, skill="accuracy on gold", needs_gold=True, takes_gold=True
    ),
    "k-rbm": Method("K-RBM", _krbm, random=True, skill="accuracy"),
}
