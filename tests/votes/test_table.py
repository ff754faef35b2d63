"""Votes as users have them: read rightly, or refused in a line that says where and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from revbifpn.datasets.image_folders import DataError
from revbifpn.votes.table import VoteError, VoteTable, make_table, read_gold, read_votes

GOOD = "task,worker,label\na,w1,cat\na,w2,dog\nb,w1,dog\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "votes.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def votes_of(table: VoteTable) -> list[tuple[str, str, str]]:
    rows = zip(table.task, table.worker, table.label, strict=True)
    return [(table.tasks[task], table.workers[worker], table.classes[label]) for task, worker, label in rows]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        "task , worker,label\n a,w1 ,cat\na,w2,dog\n\nb,w1,dog",
        "when,label,worker,task\n1,dog,w1,b\n2,cat,w1,a\n3,dog,w2,a\n",
        '"task","worker","label"\n"a","w1","cat"\n"a","w2","dog"\n"b","w1","dog"\n',
    ],
    ids=["plain", "byte order mark", "Windows", "spaces and blank lines", "other columns and order", "quoted"],
)
def test_votes_are_read(tmp_path: Path, text: str) -> None:
    table = read_votes(written(tmp_path, text))
    assert (table.tasks, table.workers, table.classes) == (("a", "b"), ("w1", "w2"), ("cat", "dog"))
    assert votes_of(table) == [("a", "w1", "cat"), ("a", "w2", "dog"), ("b", "w1", "dog")]
    assert table.counts.tolist() == [[1, 1], [0, 1]]
    assert table.tied == 1


def test_ids_stay_text_and_numbers_stand_by_value(tmp_path: Path) -> None:
    rows = "".join(
        f"{task},{worker},{label}\n" for task, worker, label in [("007", "10", "10"), ("1", "9", "2"), ("7", "9", "2")]
    )
    table = read_votes(written(tmp_path, "task,worker,label\n" + rows))
    assert table.tasks == ("1", "007", "7")
    assert table.workers == ("9", "10")
    assert table.classes == ("2", "10")
    text = make_table([("nan", "w", "10"), ("1", "w", "x"), ("2", "w", "NA")])
    assert text.tasks == ("1", "2", "nan")
    assert text.classes == ("10", "NA", "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "votes.csv is empty: expected a line with the names of the columns"),
        ("\n", "votes.csv is empty"),
        ("task,worker,label\n", "votes.csv has no votes"),
        (
            "item,worker,label\na,w,x\n",
            "has no column task: its columns are 'item', 'worker', 'label'. Name others with --task-column NAME",
        ),
        (
            "task;worker;label\na;w;x\n",
            "has no column task, no column worker, no column label: its columns are 'task;worker;label'",
        ),
        ("task,worker,label,label\na,w,x,y\n", "has the column label twice"),
        ("task,worker,label\na,w,x\nb,w\n", "votes.csv, line 3: 2 cells, the header has 3"),
        ("task,worker,label\na,w,x,y\n", "votes.csv, line 2: 4 cells, the header has 3"),
        ("task,worker,label\na,w,x\n\nb, ,x\n", "votes.csv, line 4: no worker. Remove the row, or fill the cell"),
        ('task,worker,label\na,w,"x\n', "votes.csv is no CSV file in UTF-8: unexpected end of data"),
        ("task,worker,label\na,w,caf\xe9\n".encode("latin-1"), "votes.csv is no CSV file in UTF-8"),
        (
            GOOD + "a,w1,dog\nb,w1,dog\n",
            "has 2 repeated votes, such as worker 'w1' on 'a', worker 'w1' on 'b': remove them, or keep one",
        ),
    ],
)
def test_what_is_no_table_of_votes_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_votes(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_votes(tmp_path / "no.csv")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_votes(tmp_path)
    with pytest.raises(VoteError, match="the columns must be different ones, got task, label, label"):
        read_votes(written(tmp_path, GOOD), worker="label")


def test_repeated_votes_keep_the_first_or_the_last() -> None:
    rows = [("a", "w", "x"), ("b", "w", "x"), ("a", "w", "y")]
    assert votes_of(make_table(rows, duplicates="first")) == [("a", "w", "x"), ("b", "w", "x")]
    assert votes_of(make_table(rows, duplicates="last")) == [("a", "w", "y"), ("b", "w", "x")]
    with pytest.raises(VoteError, match="duplicates must be one of stop, first, last, got 'most'"):
        make_table(rows, duplicates="most")


def test_classes_may_be_given() -> None:
    table = make_table([("a", "w", "low"), ("b", "w", "high")], ["low", "mid", "high"])
    assert table.counts.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert table.order_given
    with pytest.raises(VoteError, match="labels that are none of the classes low, mid: 'high'"):
        make_table([("a", "w", "low"), ("b", "w", "high")], ["low", "mid"])
    with pytest.raises(VoteError, match="classes are named twice: 'low'"):
        make_table([("a", "w", "low")], ["low", "mid", "low"])


def test_known_labels(tmp_path: Path) -> None:
    assert read_gold(written(tmp_path, "task,label\na,x\nb,y\na,x\n")) == {"a": "x", "b": "y"}
    with pytest.raises(VoteError, match="has two labels for 'a': 'x' and 'y'"):
        read_gold(written(tmp_path, "task,label\na,x\na,y\n"))
    with pytest.raises(VoteError, match="has no labels"):
        read_gold(written(tmp_path, "task,label\n"))
