"""Simulated annotators, for tests, measurements and for trying things out: each has a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from revbifpn.votes.table import VoteTable, make_table

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Crowd:
    """What the annotators of a simulation are like.

    Attributes:
        workers: how many there are.
        accuracy: mean of their accuracies, which are Beta distributed.
        concentration: of that Beta distribution; the larger, the more alike are the workers.
        spammers: share of the workers who answer without looking, each with a favourite class.
        adversaries: share of the workers who name a wrong class on purpose.
        ordinal: errors fall on neighbouring levels only.
        hard_items: share of the items on which nobody does better than a guess between the class and one other class.
    """

    workers: int = 20
    accuracy: float = 0.7
    concentration: float = 6.0
    spammers: float = 0.1
    adversaries: float = 0.0
    ordinal: bool = False
    hard_items: float = 0.0


def simulate_votes(
    truth: npt.NDArray[np.int64], num_classes: int, votes_per_item: int, crowd: Crowd, seed: int = 0
) -> tuple[VoteTable, Floats]:
    """Let a crowd vote on items whose classes are known.

    Args:
        truth: (N,) the items' classes.
        num_classes: K.
        votes_per_item: each item is voted on by so many workers, drawn at random.
        crowd: the annotators.
        seed: of everything that is random.

    Returns:
        The votes, whose items, workers and classes are called ``"0"``, ``"1"``, ..., and the workers' confusion matrices
        (W, K, K): ``[w, k, l]`` is the probability that worker ``w`` says ``l`` of an item of class ``k``, unless it is hard.

    Raises:
        ValueError: if an item needs more workers than there are.
    """
    if not 1 <= votes_per_item <= crowd.workers:
        raise ValueError(f"votes_per_item must be 1 to {crowd.workers}, the number of workers, got {votes_per_item}")
    rng = np.random.default_rng(seed)
    confusion = _confusions(num_classes, crowd, rng)
    hard = rng.random(len(truth)) < crowd.hard_items
    other = (truth + rng.integers(1, max(num_classes, 2), len(truth))) % num_classes
    rows = []
    for item, true in enumerate(truth):
        for worker in rng.choice(crowd.workers, votes_per_item, replace=False):
            chances = confusion[worker, true]
            if hard[item]:
                chances = (np.eye(num_classes)[true] + np.eye(num_classes)[other[item]]) / 2
            rows.append((str(item), str(worker), str(rng.choice(num_classes, p=chances))))
    return make_table(rows, [str(name) for name in range(num_classes)]), confusion


def _confusions(num_classes: int, crowd: Crowd, rng: np.random.Generator) -> Floats:
    confusion = np.zeros((crowd.workers, num_classes, num_classes))
    kinds = rng.permutation(crowd.workers)
    spammers, adversaries = round(crowd.spammers * crowd.workers), round(crowd.adversaries * crowd.workers)
    for worker, kind in enumerate(kinds):
        accuracy = rng.beta(crowd.accuracy * crowd.concentration, (1 - crowd.accuracy) * crowd.concentration)
        favourite = rng.integers(num_classes)
        for true in range(num_classes):
            wrong = np.abs(np.arange(num_classes) - true) == 1 if crowd.ordinal else np.arange(num_classes) != true
            if kind < spammers:
                confusion[worker, true] = 0.3 / num_classes
                confusion[worker, true, favourite] += 0.7
                continue
            right = 0.1 if kind < spammers + adversaries else accuracy
            confusion[worker, true, wrong] = (1 - right) / max(wrong.sum(), 1)
            confusion[worker, true, true] = right if wrong.any() else 1.0
    return confusion
