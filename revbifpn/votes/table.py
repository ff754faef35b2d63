"""Votes in a CSV file, read and checked: a row for each vote, with the item, the annotator and the class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from revbifpn.datasets.csv_files import read_csv
from revbifpn.datasets.image_folders import DataError

Codes = npt.NDArray[np.int64]

#: What to do with several votes of one worker on one item.
DUPLICATES = ("stop", "first", "last")
_NAMED = 3  # offenders that a message names


class VoteError(DataError):
    """Votes, or options for them, that cannot be used; the message says which and what to do."""


@dataclass(frozen=True)
class VoteTable:
    """Votes as numbers, sorted by item and worker, so that nothing depends on the order of a file's rows.

    Attributes:
        tasks, workers, classes: their names, in the order of the numbers.
        task, worker, label: (V,) for each vote the item, the worker and the class, as places in those.
        order_given: whether somebody gave the order of the classes.
    """

    tasks: tuple[str, ...]
    workers: tuple[str, ...]
    classes: tuple[str, ...]
    task: Codes
    worker: Codes
    label: Codes
    order_given: bool = False

    def __len__(self) -> int:
        return len(self.task)

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """(N, K): votes of each item for each class."""
        counts = np.zeros((len(self.tasks), len(self.classes)), np.int64)
        np.add.at(counts, (self.task, self.label), 1)
        return counts

    @property
    def tied(self) -> int:
        """Number of items on which two classes or more have the most votes."""
        return int(((self.counts == self.counts.max(1, keepdims=True)).sum(1) > 1).sum())

    def frame(self) -> pd.DataFrame:
        """The numbers as crowd-kit takes them: columns ``task``, ``worker``, ``label``."""
        return pd.DataFrame({"task": self.task, "worker": self.worker, "label": self.label})


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once: numbers by value, where all are numbers, else text by its characters."""
    unique = set(names)
    if are_numbers(unique):
        return tuple(sorted(unique, key=lambda name: (float(name), name)))
    return tuple(sorted(unique))


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are finite numbers, so that they have an order of their own."""
    try:
        return all(np.isfinite(float(name)) for name in names)
    except ValueError:
        return False


def make_table(
    rows: Sequence[tuple[str, str, str]], classes: Sequence[str] | None = None, duplicates: str = "stop", source: str = "votes"
) -> VoteTable:
    """Make a table of (task, worker, label) triples.

    Args:
        rows: the votes.
        classes: all classes, in the order of their numbers; they may have some that nobody votes for. None for those of the
            votes, in their order (numbers by value, else text by its characters).
        duplicates: where a worker voted more than once on an item, ``"stop"`` raises, ``"first"`` and ``"last"`` keep the
            vote that stands first or last.
        source: what messages call the votes.

    Raises:
        VoteError: if there is no vote, for repeated votes, and for labels that are not among the classes.
    """
    if duplicates not in DUPLICATES:
        raise VoteError(f"duplicates must be one of {', '.join(DUPLICATES)}, got {duplicates!r}")
    if not rows:
        raise VoteError(f"{source} has no votes")
    if classes is not None and len(set(classes)) < len(classes):
        raise VoteError(f"classes are named twice: {some([name for name in set(classes) if list(classes).count(name) > 1])}")
    frame = pd.DataFrame(rows, columns=["task", "worker", "label"], dtype=object)
    repeated = frame.duplicated(["task", "worker"])
    if repeated.any() and duplicates == "stop":
        pairs = [f"worker {row.worker!r} on {row.task!r}" for row in frame[repeated].head(_NAMED).itertuples()]
        raise VoteError(
            f"{source} has {int(repeated.sum())} repeated votes, such as {', '.join(pairs)}: remove them, or keep one of each "
            "with duplicates 'first' or 'last'"
        )
    frame = frame.drop_duplicates(["task", "worker"], keep="last" if duplicates == "last" else "first")
    names = in_order(frame["label"]) if classes is None else tuple(classes)
    if unknown := in_order(set(frame["label"]) - set(names)):
        raise VoteError(f"{source} has labels that are none of the classes {', '.join(names)}: {some(unknown)}")
    tasks, workers = in_order(frame["task"]), in_order(frame["worker"])
    task, worker, label = (
        _numbers(frame[column].tolist(), order) for column, order in (("task", tasks), ("worker", workers), ("label", names))
    )
    order = np.lexsort((worker, task))
    return VoteTable(tasks, workers, names, task[order], worker[order], label[order], classes is not None)


def read_votes(
    path: Path,
    task: str = "task",
    worker: str = "worker",
    label: str = "label",
    classes: Sequence[str] | None = None,
    duplicates: str = "stop",
) -> VoteTable:
    """Read votes from a CSV file with a header; everything in it is text, so that ids such as 007 stay what they are.

    Args:
        path: the file, in UTF-8.
        task, worker, label: names of its columns; it may have others.
        classes, duplicates: see :func:`make_table`.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: naming file, line and remedy: an empty file, missing columns, empty or missing cells, a file that is no CSV
            in UTF-8, and what :func:`make_table` refuses.
    """
    found = read_columns(path, {"task": task, "worker": worker, "label": label})
    rows = [(cells[0], cells[1], cells[2]) for cells in found]
    return make_table(rows, classes, duplicates, str(path))


def read_gold(path: Path, task: str = "task", label: str = "label") -> dict[str, str]:
    """Read known labels, item -> class, from a CSV file.

    Raises:
        FileNotFoundError, DataError: as :func:`read_votes`; also for an item with two different labels.
    """
    gold: dict[str, str] = {}
    for name, known in read_columns(path, {"task": task, "label": label}):
        if gold.setdefault(name, known) != known:
            raise VoteError(f"{path} has two labels for {name!r}: {gold[name]!r} and {known!r}")
    if not gold:
        raise VoteError(f"{path} has no labels")
    return gold


def read_columns(path: Path, columns: dict[str, str]) -> list[list[str]]:
    """The cells of the named columns of a CSV file, row by row.

    Args:
        path: the file.
        columns: what a column is for -> its name.

    Raises:
        FileNotFoundError, DataError: see :func:`read_votes`.
    """
    if len(set(columns.values())) < len(columns):
        raise VoteError(f"the columns must be different ones, got {', '.join(columns.values())}")
    table = read_csv(path)
    places = _places(path, table.header, columns)
    rows = []
    for line, cells in table.rows:
        row = [cells[place] for place in places]
        if "" in row:
            raise VoteError(f"{path}, line {line}: no {table.header[places[row.index('')]]}. Remove the row, or fill the cell")
        rows.append(row)
    return rows


def _places(path: Path, header: list[str], columns: dict[str, str]) -> list[int]:
    wrong = {purpose: name for purpose, name in columns.items() if header.count(name) != 1}
    if not wrong:
        return [header.index(name) for name in columns.values()]
    options = " ".join(f"--{purpose}-column NAME" for purpose in wrong)
    twice = [name for name in wrong.values() if name in header]
    what = f"has the column {twice[0]} twice" if twice else f"has no column {', no column '.join(wrong.values())}"
    raise VoteError(f"{path} {what}: its columns are {some(header, 8)}. Name others with {options}")


def _numbers(names: Sequence[str], order: Sequence[str]) -> Codes:
    places = {name: place for place, name in enumerate(order)}
    return np.array([places[name] for name in names], np.int64)


def some(names: Sequence[str], most: int = _NAMED) -> str:
    """The first few names in a line, and how many more there are."""
    return ", ".join(map(repr, names[:most])) + (f", ... ({len(names) - most} more)" if len(names) > most else "")
