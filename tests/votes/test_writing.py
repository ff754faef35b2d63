"""Files come all together or not at all, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from revbifpn.votes.table import VoteError
from revbifpn.votes.writing import check_targets, renamed, write_files


def test_tables_and_numbers_are_what_is_read_again(tmp_path: Path) -> None:
    table = pd.DataFrame({"task": ["a,b", 'c"d', "é\nf"], "p": [1 / 3, 1e-17, 1.0]})
    soft = pd.DataFrame({"0": [0.1]}, pd.Index(["x"], name="task"))
    write_files({tmp_path / "new" / "a.csv": table, tmp_path / "b.csv": soft, tmp_path / "c.json": {"alpha": None, "é": 0.1}})
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "new" / "a.csv"), table, check_exact=True, check_dtype=False)
    assert (tmp_path / "b.csv").read_text() == "task,0\nx,0.1\n"
    assert json.loads((tmp_path / "c.json").read_text()) == {"alpha": None, "é": 0.1}


def test_nothing_is_written_half(tmp_path: Path) -> None:
    old = tmp_path / "a.csv"
    old.write_text("old")
    with pytest.raises(TypeError):
        write_files({old: pd.DataFrame({"a": [1]}), tmp_path / "b.json": {"cannot": object()}})
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_what_would_be_lost_is_refused(tmp_path: Path) -> None:
    votes, out = tmp_path / "votes.csv", tmp_path / "out.csv"
    votes.touch()
    check_targets([out], [votes], False)
    with pytest.raises(VoteError, match=r"out.csv is named for two outputs"):
        check_targets([out, tmp_path / "x" / ".." / "out.csv"], [votes], False)
    with pytest.raises(VoteError, match=r"votes.csv is an input"):
        check_targets([votes], [votes], True)
    with pytest.raises(VoteError, match="is a folder: name a file in it"):
        check_targets([tmp_path], [votes], True)
    with pytest.raises(VoteError, match=r"votes.csv is no folder"):
        check_targets([votes / "out.csv"], [], True)
    out.touch()
    with pytest.raises(VoteError, match="out.csv exists: choose another name, or replace it with --overwrite"):
        check_targets([out], [votes], False)
    check_targets([out], [votes], True)


def test_columns_have_the_users_names() -> None:
    names = {"task": "image", "worker": "who", "label": "animal"}
    assert list(renamed(pd.DataFrame({"task": [1], "label": [2]}), names).columns) == ["image", "animal"]
    soft = renamed(pd.DataFrame({"label": [0.5]}, pd.Index(["x"], name="task")), names)
    assert (soft.index.name, list(soft.columns)) == ("image", ["label"])
    with pytest.raises(VoteError, match="two columns of an output would be called 'votes'"):
        renamed(pd.DataFrame({"label": [1], "votes": [2]}), {"label": "votes"})
    with pytest.raises(VoteError, match="two columns of an output would be called 'image'"):
        renamed(pd.DataFrame({"image": [0.5]}, pd.Index(["x"], name="task")), names)
