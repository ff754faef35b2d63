"""K-RBM: restricted Boltzmann machines, one for each class, compete for the items by how well they reconstruct their votes.

After Gupta (arXiv:1611.05340, 2016), built from the equations: the published code trains each machine on all items.
"""

from __future__ import annotations

from typing import Any

import attr
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from crowdkit.aggregation.base import BaseClassificationAggregator
from torch import Tensor
from tqdm import tqdm

from revbifpn.votes.machines import Machines, Votes
from revbifpn.votes.table import VoteError

_LEAST_PRIOR = 1e-10
_SETTLED = 1e-3  # share of the items whose label may still change, twice in a row, in a run that ends


@attr.s(auto_attribs=True)
class KRBM(BaseClassificationAggregator):
    """Aggregate votes with K competing restricted Boltzmann machines; crowd-kit's interface.

    Machine k begins with the votes on items by their shares of votes for class k, so that it stands for class k and no mapping
    is needed. Then, in turns: each machine learns its items (``epochs`` steps of CD-1), and each item goes to the machines
    anew, by the log of the machine's prior plus the log probability of the item's votes in its reconstruction. With
    ``soft=True`` the machines share an item by softmax, else the best takes it.

    With ``n_hidden=0`` the machines' optimum is known, and with soft assignment this is the EM of Dawid and Skene (1979).

    The number of hidden units should stay small (0 to 4): a machine with many reconstructs every pattern of votes, and nothing
    is left to compete for.

    Attributes:
        n_hidden: hidden units H of each machine.
        soft: whether the machines share an item.
        ordered: the labels are numbers whose distance counts: ``smoothing`` then falls on near labels rather than on all.
        n_iter: turns at most.
        epochs: steps of CD-1 in each turn.
        smoothing: votes, in all, that each worker is taken to have given in each machine beside the real ones.
        weight_decay: pulls weights towards 0, as so many votes with weight 0 would.
        learning_rate, momentum: of CD-1.
        temperature: divides the reconstruction's log probability in the competition; more than 1 makes probabilities milder.
        tol: the run also goes on, with ``soft=True``, while probabilities change by more than this in the mean of all.
        n_restarts: runs from different random weights; the one whose machines reconstruct best is kept.
        random_state: seed of the random weights and samples.
        verbose: whether to show a progress bar.
        labels_: Series, each task's class; index ``task``, sorted.
        probas_: DataFrame, tasks x labels, rows that sum to 1 (0 and 1 where the assignment is hard).
        skills_: Series, how probable the machines hold it that a worker names the right class; index ``worker``.
        priors_: Series, each class's share of the items.
        cost_: minus the log probability of all votes, over machines and priors, by which restarts are compared.
        n_iter_: turns taken.
        converged_: whether the labels stood before ``n_iter`` turns.
    """

    n_hidden: int = 2
    soft: bool = True
    ordered: bool = False
    n_iter: int = 50
    epochs: int = 5
    smoothing: float = 1.0
    weight_decay: float = 10.0
    learning_rate: float = 0.1
    momentum: float = 0.5
    temperature: float = 1.0
    tol: float = 1e-4
    n_restarts: int = 1
    random_state: int = 0
    verbose: bool = False

    probas_: pd.DataFrame = attr.ib(init=False)
    skills_: pd.Series = attr.ib(init=False)
    priors_: pd.Series = attr.ib(init=False)
    cost_: float = attr.ib(init=False)
    n_iter_: int = attr.ib(init=False)
    converged_: bool = attr.ib(init=False)

    def fit(self, data: pd.DataFrame) -> KRBM:
        """Aggregate votes: columns ``task``, ``worker``, ``label``, in any order of the rows.

        Raises:
            VoteError: for a setting that makes no sense, and for labels that are no numbers where ``ordered=True``.
        """
        self._check()
        if not len(data):
            self.labels_, self.probas_ = pd.Series(dtype=object), pd.DataFrame()
            self.skills_ = self.priors_ = pd.Series(dtype=float)
            self.cost_, self.n_iter_, self.converged_ = 0.0, 0, True
            return self
        codes, names = zip(*(pd.factorize(data[name], sort=True) for name in ("task", "worker", "label")), strict=True)
        order = np.lexsort((codes[2], codes[1], codes[0]))
        item, worker, label = (torch.from_numpy(code[order].astype(np.int64)) for code in codes)
        votes = Votes(item, worker, label, *(len(name) for name in names))
        best: _Run | None = None
        restarts = self.n_restarts if self.n_hidden else 1  # without hidden units nothing is random
        with tqdm(total=restarts * self.n_iter, desc="K-RBM", unit="turn", disable=not self.verbose, leave=False) as bar:
            for restart in range(restarts):
                generator = torch.Generator().manual_seed(self.random_state + restart)
                run = _Run(self, votes, self._smoothing(names[2]), generator)
                run.to_the_end(bar)
                if best is None or run.cost < best.cost:
                    best = run
        assert best is not None
        self._keep(best, votes, names)
        return self

    def fit_predict(self, data: pd.DataFrame) -> pd.Series:
        """Aggregate votes and return ``labels_``."""
        return self.fit(data).labels_

    def fit_predict_proba(self, data: pd.DataFrame) -> pd.DataFrame:
        """Aggregate votes and return ``probas_``."""
        return self.fit(data).probas_

    def _keep(self, run: _Run, votes: Votes, names: tuple[Any, ...]) -> None:
        tasks, workers, labels = names
        index, columns = pd.Index(tasks, name="task"), pd.Index(labels, name="label")
        responsibility = run.responsibility.numpy()
        self.probas_ = pd.DataFrame(responsibility, index, columns)
        self.labels_ = pd.Series(np.asarray(labels)[responsibility.argmax(1)], index)
        skills = run.machines.chance_of_own_class(votes, run.responsibility)
        self.skills_ = pd.Series(skills.numpy(), pd.Index(workers, name="worker"), name="skill")
        self.priors_ = pd.Series(responsibility.mean(0), columns, name="prior")
        self.cost_, self.n_iter_, self.converged_ = run.cost, run.turns, run.converged

    def _smoothing(self, labels: npt.NDArray[Any]) -> Tensor:
        """(K, L): the votes that ``smoothing`` stands for."""
        count = len(labels)
        if not self.ordered:
            return torch.full((count, count), self.smoothing / count, dtype=torch.float64)
        try:
            levels = torch.tensor([float(name) for name in labels], dtype=torch.float64)
        except ValueError:
            raise VoteError(f"ordered=True needs labels that are numbers, got {', '.join(map(str, labels[:5]))}") from None
        return self.smoothing * torch.softmax(-(levels[:, None] - levels).abs(), dim=1)

    def _check(self) -> None:
        for name in ("n_hidden", "epochs", "weight_decay", "tol"):
            if getattr(self, name) < 0:
                raise VoteError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("n_iter", "n_restarts", "smoothing", "learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise VoteError(f"{name} must be more than 0, got {getattr(self, name)}")


class _Run:
    """A run from one start: machines learn, items are given out."""

    def __init__(self, settings: KRBM, votes: Votes, smoothing: Tensor, generator: torch.Generator) -> None:
        self.settings, self.votes, self.generator = settings, votes, generator
        ones = torch.ones(len(votes.item), 1, dtype=torch.float64)
        shares = votes.sum_by_item(ones * torch.nn.functional.one_hot(votes.label, votes.num_labels))
        self.shares = shares / shares.sum(1, keepdim=True)
        self.responsibility = self.shares
        self.machines = Machines.start(votes, self.shares, settings.n_hidden, smoothing, settings.weight_decay, generator)
        self.may_restart = [settings.n_hidden > 0 or not settings.soft] * votes.num_labels
        self.cost = np.inf
        self.turns = 0
        self.converged = False

    def to_the_end(self, bar: Any) -> None:
        """Take turns until the labels stand."""
        settled = 0
        while self.turns < self.settings.n_iter:
            self.turns += 1
            before = self.responsibility
            self._learn()
            self._compete()
            bar.update()
            changed = (before.argmax(1) != self.responsibility.argmax(1)).double().mean().item()
            moved = (before - self.responsibility).abs().mean().item() if self.settings.soft else 0.0
            settled = settled + 1 if changed < _SETTLED and moved <= self.settings.tol else 0
            if settled == 2:
                self.converged = True
                bar.update(self.settings.n_iter - self.turns)
                return

    def _learn(self) -> None:
        if not self.settings.n_hidden:
            self.machines.fit_biases(self.votes, self.responsibility)
            return
        for _ in range(self.settings.epochs):
            self.machines.contrastive_divergence(
                self.votes, self.responsibility, self.settings.learning_rate, self.settings.momentum, self.generator
            )

    def _compete(self) -> None:
        prior = self.responsibility.mean(0).clamp(min=_LEAST_PRIOR)
        score = prior.log() + self.machines.log_reconstruction(self.votes) / self.settings.temperature
        self.cost = -score.logsumexp(1).sum().item()
        if self.settings.soft:
            self.responsibility = score.softmax(1)
        else:
            best = torch.from_numpy(score.numpy().argmax(1))  # numpy's gives ties to the first, torch's to any
            self.responsibility = torch.nn.functional.one_hot(best, score.shape[1]).to(score.dtype)
        self._restart_idle_machines()

    def _restart_idle_machines(self) -> None:
        """A machine that is left with less than one item gets those back on which most voted for its class, once."""
        for machine, total in enumerate(self.responsibility.sum(0).tolist()):
            if total < 1 and self.may_restart[machine]:
                self.may_restart[machine] = False
                own = self.shares.argmax(1) == machine
                self.responsibility = torch.where(own[:, None], self.shares, self.responsibility)
