"""Simulated votes that the tests share, and Dawid and Skene's EM in a few lines of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from revbifpn.votes.simulate import Crowd, simulate_votes
from revbifpn.votes.table import VoteTable

Floats = npt.NDArray[np.float64]


def crowd_votes(items: int = 80, classes: int = 3, votes: int = 5, seed: int = 0, **crowd: object) -> tuple[VoteTable, Floats]:
    """Votes and the true classes."""
    truth = np.random.default_rng(seed + 100).integers(0, classes, items)
    described = {"workers": 12, "accuracy": 0.75, "spammers": 0.17} | crowd
    table, _ = simulate_votes(truth, classes, votes, Crowd(**described), seed)  # type: ignore[arg-type]
    # Items are called "0", "1", ... and sorted by value, so they stand in the order of the truth.
    return table, truth


def dawid_skene(table: VoteTable, turns: int, smoothing: float) -> Floats:
    """(N, K) after ``turns`` of expectation maximization; ``smoothing`` votes are added for each worker and class."""
    items, workers, classes = len(table.tasks), len(table.workers), len(table.classes)
    given = np.zeros((items, workers, classes))
    given[table.task, table.worker, table.label] = 1
    shares: Floats = given.sum(1) / given.sum((1, 2))[:, None]
    for _ in range(turns):
        confusion = np.einsum("nk,nml->mkl", shares, given) + smoothing / classes
        confusion /= confusion.sum(2, keepdims=True)
        score = np.log(shares.mean(0)) + np.einsum("nml,mkl->nk", given, np.log(confusion))
        shares = np.exp(score - score.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
    return shares
