"""How far to trust votes: workers one by one, all of them together, and the items that need another vote most."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from crowdkit.metrics.data import alpha_krippendorff

from revbifpn.votes.table import VoteTable

Floats = npt.NDArray[np.float64]


def worker_reliability(table: VoteTable, probas: Floats, ordered: bool = False, skill: Floats | None = None) -> pd.DataFrame:
    """Measure each worker against the aggregated labels, which the worker's own votes are part of.

    Args:
        table: the votes.
        probas: (N, K) probabilities of the items' classes.
        ordered: the classes are levels: disagreement weighs by the square of its distance, and its mean is given too.
        skill: (W,) a method's own measure, to stand beside.

    Returns:
        A row for each worker: ``worker``, ``votes``, ``accuracy`` (expected share of right votes), ``kappa`` (the same beyond
        chance: Cohen's, with quadratic weights for levels; NaN where a worker's votes and items leave no room for chance),
        for levels ``mean_error`` (in levels), and ``skill``.
    """
    count = len(table.classes)
    levels = np.arange(count)
    joint = np.zeros((len(table.workers), count, count))  # of each worker, votes by their class and the items' probabilities
    np.add.at(joint, (table.worker, table.label), probas[table.task])
    votes = joint.sum((1, 2))
    joint /= votes[:, None, None]
    distance = np.abs(levels[:, None] - levels) if ordered else (levels[:, None] != levels).astype(float)
    weight = distance**2
    observed = (joint * weight).sum((1, 2))
    expected = np.einsum("wl,wk,lk->w", joint.sum(2), joint.sum(1), weight)
    kappa = np.full(len(votes), np.nan)
    np.divide(observed, expected, out=kappa, where=expected > 1e-12)
    columns = {"worker": table.workers, "votes": votes.round().astype(int), "accuracy": np.trace(joint, axis1=1, axis2=2)}
    columns["kappa"] = 1 - kappa
    if ordered:
        columns["mean_error"] = (joint * distance).sum((1, 2))
    if skill is not None:
        columns["skill"] = skill
    return pd.DataFrame(columns)


def krippendorff_alpha(table: VoteTable, ordered: bool = False) -> float | None:
    """Krippendorff's alpha of all votes: 1 for perfect agreement, 0 for that of chance.

    Args:
        table: the votes.
        ordered: take the ordinal difference, by which levels are the farther apart the more votes lie between them.

    Returns:
        alpha; None if no item has two votes.
    """
    per_item = table.counts.sum(1)
    if per_item.max() < 2:
        return None
    if not ordered:
        return float(alpha_krippendorff(table.frame()))
    paired = table.counts[per_item >= 2].sum(0)
    middle = np.cumsum(paired) - paired / 2
    return float(alpha_krippendorff(table.frame(), lambda a, b: float((middle[a] - middle[b]) ** 2)))


def expected_error(probas: Floats, labels: npt.NDArray[np.int64], ordered: bool = False) -> Floats:
    """(N,): probability that the label is wrong; for levels, the expected distance between it and the true one."""
    if not ordered:
        return np.asarray(1 - probas[np.arange(len(labels)), labels]).clip(min=0)
    distance = np.abs(np.arange(probas.shape[1]) - labels[:, None])
    return np.asarray((probas * distance).sum(1))


def vote_again_first(errors: Floats, votes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(N,): the items in the order in which another vote helps most: large expected errors first, then few votes."""
    return np.lexsort((np.arange(len(errors)), votes, -errors))
