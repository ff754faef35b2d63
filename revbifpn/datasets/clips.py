"""Sets of clips: a folder with CSV files, what a split holds, and the checks that name what is at fault.

A clip folder is::

    root/train.csv      path,user,Engagement,Boredom
    root/val.csv        a/0001.avi,110001,2,
    root/a/0001.avi

``path`` is relative to the root. Each output has a column of levels; an empty cell is a missing label. A column ``user`` is
not needed; where it is there, no user may be in two splits. Class probabilities, as ``tools/aggregate_votes.py --soft`` writes
them, are a CSV file of their own for each output: the clip, then a column for each level.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from revbifpn.datasets.csv_files import CsvTable, read_csv
from revbifpn.datasets.image_folders import DataError

MISSING = -1
_SUM_TOLERANCE = 1e-3  # of probabilities that somebody may have rounded to four digits
_MOST_NAMED = 10

#: A level, :data:`MISSING`, or the probabilities of all levels.
Label = int | tuple[float, ...]


@dataclass(frozen=True)
class Clip:
    """A clip and its labels.

    Attributes:
        name: what tells it from the others in all splits.
        path: its file.
        labels: one for each output, in the outputs' order.
        user: who is in it; None if unknown.
    """

    name: str
    path: Path
    labels: tuple[Label, ...]
    user: str | None = None


@dataclass
class ClipSplit:
    """What was found of a split.

    Attributes:
        name: of the split.
        outputs: names of the outputs and their numbers of levels.
        clips: those that have a file and a label.
        unlabelled: names of clips with a file and no label.
        without_file: names of clips with a label and no file.
        faults: what is wrong, by kind; nothing may be.
    """

    name: str
    outputs: Mapping[str, int]
    clips: list[Clip] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    without_file: list[str] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def blame(self, kind: str, offender: str) -> None:
        """Note a fault."""
        self.faults.setdefault(kind, []).append(offender)

    def __str__(self) -> str:
        parts = [f"{self.name}: {len(self.clips):,} clips with labels"]
        if self.unlabelled:
            parts.append(f"{len(self.unlabelled):,} without a label left out: {some(self.unlabelled)}")
        if self.without_file:
            parts.append(f"{len(self.without_file):,} labels without a file left out: {some(self.without_file)}")
        return "; ".join(parts)

    def counts(self, output: str) -> list[float]:
        """How many clips have each level of an output; of probabilities, their sum."""
        index, levels = list(self.outputs).index(output), self.outputs[output]
        totals = [0.0] * levels
        for clip in self.clips:
            label = clip.labels[index]
            if isinstance(label, tuple):
                totals = [total + share for total, share in zip(totals, label, strict=True)]
            elif label != MISSING:
                totals[label] += 1
        return totals


def read_clip_folder(
    root: Path, split: str, outputs: Mapping[str, int], soft_labels: Mapping[str, str] | None = None
) -> ClipSplit:
    """Read a split of a clip folder, ``root/<split>.csv``. Files are looked for, not opened.

    Args:
        outputs: names of the label columns, and how many levels each has.
        soft_labels: for some outputs a CSV file of probabilities, relative to the root, in place of the column.

    Raises:
        FileNotFoundError: if there is no such table.
        DataError: if a table has not the columns that it needs.
    """
    path = root / f"{split}.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"clips not found: {path} does not exist. Expected {root}/train.csv and {root}/val.csv with the columns path, "
            f"{', '.join(outputs)}. Link your copy there, or name another place with --data FOLDER"
        )
    table = read_csv(path)
    soft = {name: read_probabilities(root / file, outputs[name]) for name, file in (soft_labels or {}).items()}
    columns = columns_of(table, ["path", *(name for name in outputs if name not in soft)])
    user = table.header.index("user") if "user" in table.header else None
    found = ClipSplit(split, outputs)
    seen: set[str] = set()
    for line, cells in table.rows:
        name = PurePath(cells[columns["path"]]).as_posix()
        if not cells[columns["path"]]:
            found.blame(f"rows without a path in {path}", f"line {line}")
            continue
        if name in seen:
            found.blame(f"named twice in {path}", f"{name} (line {line})")
            continue
        seen.add(name)
        labels = [
            soft[output].get(name, MISSING)
            if output in soft
            else read_level(found, cells[columns[output]], output, f"{name} ({path.name}, line {line})")
            for output in outputs
        ]
        add_clip(found, Clip(name, root / name, tuple(labels), cells[user] or None if user is not None else None))
    return found


def add_clip(split: ClipSplit, clip: Clip) -> None:
    """Put a clip where it belongs: among those that can be used, those without a label, or those without a file."""
    if all(label == MISSING for label in clip.labels):
        split.unlabelled.append(clip.name)
    elif not clip.path.is_file():
        split.without_file.append(clip.name)
    else:
        split.clips.append(clip)


def columns_of(table: CsvTable, names: Sequence[str]) -> dict[str, int]:
    """Where the columns of these names are.

    Raises:
        DataError: naming those that miss, and those that are there.
    """
    if missing := [name for name in names if name not in table.header]:
        raise DataError(f"{table.path} has no column {', '.join(missing)}; it has {', '.join(table.header)}")
    return {name: table.header.index(name) for name in names}


def read_level(split: ClipSplit, cell: str, output: str, where: str) -> int:
    """The level in a cell, :data:`MISSING` in an empty one; what is none is noted as a fault."""
    if not cell:
        return MISSING
    levels = split.outputs[output]
    if not cell.isdecimal() or int(cell) >= levels:
        split.blame(f"level out of range 0..{levels - 1}", f"{output}={cell} of {where}")
        return MISSING
    return int(cell)


def read_probabilities(path: Path, levels: int) -> dict[str, tuple[float, ...]]:
    """Read the probabilities of levels: the first column names the clip, the others the levels 0, 1, ... in any order.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: for other columns, a clip that is there twice, or rows that are no probabilities.
    """
    table = read_csv(path)
    names = [str(level) for level in range(levels)]
    if sorted(table.header[1:]) != sorted(names):
        raise DataError(
            f"{path} has columns for {', '.join(table.header[1:])}; the levels are {', '.join(names)} "
            f"(aggregate_votes writes levels without votes too with --classes {' '.join(names)})"
        )
    columns = columns_of(table, names)
    found: dict[str, tuple[float, ...]] = {}
    for line, cells in table.rows:
        name = PurePath(cells[0]).as_posix()
        if name in found:
            raise DataError(f"{path}, line {line}: {name} is there twice")
        try:
            row = [float(cells[columns[level]]) for level in names]
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from error
        if not all(0 <= share <= 1 for share in row) or abs(math.fsum(row) - 1) > _SUM_TOLERANCE:
            raise DataError(f"{path}, line {line}: {name} has no probabilities that sum to 1, but {row}")
        total = math.fsum(row)
        found[name] = tuple(share / total for share in row)
    return found


def check_splits(splits: Iterable[ClipSplit], may_miss: Container[str] = ()) -> None:
    """Check that splits can be trained and tested on.

    Args:
        may_miss: names of the splits whose labels may be without a file.

    Raises:
        DataError: listing by name, all kinds at once: levels out of range, clips that are named twice, labels without files,
            users and clips that are in two splits; or a split without clips.
    """
    splits = list(splits)
    faults: dict[str, list[str]] = {}
    for split in splits:
        for kind, offenders in split.faults.items():
            faults.setdefault(kind, []).extend(offenders)
        if split.without_file and split.name not in may_miss:
            faults.setdefault("labels without a file (on_error='skip' leaves them out)", []).extend(split.without_file)
        if not split.clips:
            faults.setdefault("splits without a clip that has a file and a label", []).append(split.name)
    users: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for split in splits:
        for user in dict.fromkeys(clip.user for clip in split.clips if clip.user is not None):
            users.setdefault(user, []).append(split.name)
        for name in (*(clip.name for clip in split.clips), *split.unlabelled, *split.without_file):
            names.setdefault(str(PurePath(name).with_suffix("")), []).append(split.name)
    for kind, places in (("users in two splits", users), ("clips in two splits", names)):
        shared = [f"{key} ({', '.join(dict.fromkeys(where))})" for key, where in places.items() if len(set(where)) > 1]
        if shared:
            faults.setdefault(kind, []).extend(shared)
    if faults:
        text = "; ".join(f"{kind}: {some(offenders)}" for kind, offenders in faults.items())
        raise DataError(f"the clips cannot be used as they are: {text}")


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f", ... ({more} more)" if more > 0 else "")
