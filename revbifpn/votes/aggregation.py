"""From a table of votes to all that is made of it: labels, probabilities, workers, agreement, items to vote on again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from revbifpn.votes.methods import METHODS, Estimate, Floats, Options, estimate
from revbifpn.votes.reliability import expected_error, krippendorff_alpha, vote_again_first, worker_reliability
from revbifpn.votes.table import VoteError, VoteTable, are_numbers, in_order, some


@dataclass(frozen=True)
class Aggregation:
    """Aggregated votes.

    Attributes:
        table: the votes.
        method: the way they were aggregated.
        ordered: the classes are levels.
        labels: (N,) a class for each of ``table.tasks``: the most probable one, of equals the first; for levels the median
            of the probabilities, which has the least expected distance from the true level.
        found: what the method says.
    """

    table: VoteTable
    method: str
    ordered: bool
    labels: npt.NDArray[np.int64]
    found: Estimate

    @property
    def probas(self) -> Floats:
        """(N, K) probabilities of the classes.

        Raises:
            VoteError: if the method has none.
        """
        if self.found.probas is None:
            raise VoteError(f"{self.method} gives labels without probabilities: choose another method for soft labels")
        return self.found.probas

    @property
    def _shares(self) -> Floats:
        """The probabilities; of a method that has none the votes' shares."""
        if self.found.probas is not None:
            return self.found.probas
        return self.table.counts / self.table.counts.sum(1, keepdims=True)

    def label_table(self) -> pd.DataFrame:
        """``task``, ``label``, ``expected_error``, ``votes``; for levels also ``expected_level``, counted from 0."""
        columns: dict[str, Any] = {
            "task": self.table.tasks,
            "label": [self.table.classes[label] for label in self.labels],
            "expected_error": expected_error(self._shares, self.labels, self.ordered),
            "votes": self.table.counts.sum(1),
        }
        if self.ordered:
            columns["expected_level"] = self._shares @ np.arange(len(self.table.classes))
        return pd.DataFrame(columns)

    def soft_label_table(self) -> pd.DataFrame:
        """A column for each class with its probability; the index, called ``task``, has the items."""
        return pd.DataFrame(self.probas, pd.Index(self.table.tasks, name="task"), list(self.table.classes))

    def targets(self, tasks: Sequence[str], classes: Sequence[str] | None = None) -> npt.NDArray[np.float32]:
        """Class probabilities as torch's cross entropy takes them: (len(tasks), len(classes)) float32, rows that sum to 1.

        Args:
            tasks: items in the order of a data set.
            classes: classes in the order of a model's outputs; None for the table's.

        Raises:
            VoteError: naming items without votes, and classes that votes were given for and ``classes`` lacks.
        """
        classes = self.table.classes if classes is None else tuple(classes)
        places = {task: place for place, task in enumerate(self.table.tasks)}
        if missing := [task for task in tasks if task not in places]:
            raise VoteError(f"{len(missing)} items have no votes: {some(missing)}")
        if lost := [name for name in self.table.classes if name not in classes and name in self._voted_for()]:
            raise VoteError(f"votes were given for classes that are not asked for: {some(lost)}")
        own = {name: place for place, name in enumerate(self.table.classes)}
        result = np.zeros((len(tasks), len(classes)), np.float32)
        rows = [places[task] for task in tasks]
        for column, name in enumerate(classes):
            if name in own:
                result[:, column] = self.probas[rows, own[name]]
        return result

    def __str__(self) -> str:
        counts = self.summary()
        alpha = counts["krippendorff_alpha"]
        agreement = "not defined: no item has two votes" if alpha is None else f"{alpha:.3f}"
        return (
            f"votes:     {counts['votes']:,} of {counts['workers']:,} workers on {counts['items']:,} items; "
            f"{counts['items_with_one_vote']:,} items have one vote, {counts['items_tied']:,} are tied\n"
            f"agreement: Krippendorff's alpha {agreement} ({counts['alpha_distance']})\n"
            f"labels:    {METHODS[self.method].title}; "
            + ", ".join(f"{name}: {count:,}" for name, count in zip(self.table.classes, counts["items_by_label"], strict=True))
        )

    def worker_table(self) -> pd.DataFrame:
        """The workers' reliability, see :func:`.worker_reliability`."""
        probas = np.eye(len(self.table.classes))[self.labels] if self.found.probas is None else self.found.probas
        return worker_reliability(self.table, probas, self.ordered, self.found.skill)

    def review_table(self) -> pd.DataFrame:
        """The rows of :meth:`label_table`, the items first that need another vote most."""
        labels = self.label_table()
        order = vote_again_first(labels["expected_error"].to_numpy(), labels["votes"].to_numpy())
        return labels.iloc[order].reset_index(drop=True)

    def summary(self) -> dict[str, Any]:
        """Counts, agreement and what the method is, for JSON."""
        per_item = self.table.counts.sum(1)
        return {
            "method": self.method,
            "items": len(self.table.tasks),
            "workers": len(self.table.workers),
            "votes": len(self.table),
            "classes": list(self.table.classes),
            "votes_by_class": self.table.counts.sum(0).tolist(),
            "items_by_label": np.bincount(self.labels, minlength=len(self.table.classes)).tolist(),
            "items_with_one_vote": int((per_item == 1).sum()),
            "items_tied": self.table.tied,
            "krippendorff_alpha": krippendorff_alpha(self.table, self.ordered),
            "alpha_distance": "ordinal" if self.ordered else "nominal",
            "skill": METHODS[self.method].skill or None,
        }

    def _voted_for(self) -> set[str]:
        return {self.table.classes[label] for label in np.unique(self.table.label)}


def aggregate(
    table: VoteTable,
    method: str = "dawid-skene",
    *,
    ordered: bool = False,
    seed: int = 0,
    progress: bool = False,
    gold: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Aggregation:
    """Aggregate votes.

    Args:
        table: the votes.
        method: one of :data:`.METHODS`.
        ordered: the classes are levels, in the order of ``table.classes``: labels are medians, reliability and agreement weigh
            disagreement by distance, and K-RBM smooths towards near levels.
        seed: of a method that draws random numbers.
        progress: whether to show a progress bar on stderr.
        gold: known labels of items, for methods that can use them; items without votes do not count.
        settings: further arguments of the method's own class.

    Raises:
        VoteError: see :func:`.estimate`; also for text levels in no given order, and for unknown classes in ``gold``.
    """
    if ordered and not table.order_given and not are_numbers(table.classes):
        raise VoteError(f"the levels {some(table.classes)} are no numbers: give all classes in their order, lowest first")
    options = Options(seed, ordered, progress, None if gold is None else _gold(table, gold), settings)
    found = estimate(table, method, options)
    labels = found.labels
    if ordered and found.probas is not None:
        # The tolerance keeps sums of rounded numbers from missing the half: of two medians the lower is taken.
        labels = (found.probas.cumsum(1) >= 0.5 - 1e-9).argmax(1)
    return Aggregation(table, method, ordered, labels, found)


def _gold(table: VoteTable, gold: Mapping[str, str]) -> npt.NDArray[np.int64]:
    known = np.full(len(table.tasks), -1, np.int64)
    classes = {name: place for place, name in enumerate(table.classes)}
    if unknown := [label for label in gold.values() if label not in classes]:
        raise VoteError(f"gold has labels that are none of the classes {some(table.classes, 8)}: {some(in_order(unknown))}")
    for place, task in enumerate(table.tasks):
        if task in gold:
            known[place] = classes[gold[task]]
    return known
