"""DAiSEE's layout with its quirks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from revbifpn.datasets.clips import check_splits
from revbifpn.datasets.daisee import SPLITS, read_daisee
from revbifpn.datasets.image_folders import DataError
from tests.datasets.daisee_tree import make_daisee


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_daisee(tmp_path_factory.mktemp("daisee") / "DAiSEE")


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A copy that the test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "DAiSEE"))


def test_quirks(original: Path) -> None:
    """The last column's trailing space, a byte order mark, .mp4 for .avi, a clip without a row, a row without a file."""
    split = read_daisee(original, "Train")
    assert [(clip.name, clip.user, clip.labels) for clip in split.clips] == [
        ("1100010000", "110001", (3, 0, 0, 1)),
        ("1100010001", "110001", (2, 1, 0, 1)),
        ("1100020100", "110002", (1, 2, 0, 1)),
        ("1100020101", "110002", (0, 3, 0, 1)),
    ]
    assert (split.unlabelled, split.without_file) == (["1100010099"], ["1100029999"])
    assert split.counts("Engagement") == [1, 1, 1, 1]
    check_splits([read_daisee(original, name) for name in SPLITS], may_miss=["Train"])


def test_some_states_in_another_order(original: Path) -> None:
    split = read_daisee(original, "Test", {"Frustration": 4, "Engagement": 4})
    assert [clip.labels for clip in split.clips] == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_suffixes_in_any_case(root: Path) -> None:
    path = root / "DataSet/Test/500001/5000010000/5000010000.avi"
    path.rename(path.with_suffix(".AVI"))
    assert len(read_daisee(root, "Test").clips) == 4


def test_offenders_are_named(root: Path) -> None:
    shutil.copytree(root / "DataSet/Train/110001", root / "DataSet/Test/110001")
    path = root / "Labels/TestLabels.csv"
    path.write_text(path.read_text().replace("5000010001.avi,2,1", "5000010001.avi,2,7") + "1100010000.avi,0,0,0,0\n")
    with pytest.raises(DataError) as caught:
        check_splits([read_daisee(root, name) for name in SPLITS], may_miss=["Train"])
    for offender in (
        "Engagement=7 of 5000010001 (TestLabels.csv, line 3)",
        "users in two splits: 110001 (Train, Test)",
        "clips in two splits: 1100010000 (Train, Test)",
    ):
        assert offender in str(caught.value)


def test_a_missing_column_and_missing_folders(root: Path) -> None:
    path = root / "Labels/TestLabels.csv"
    path.write_text(path.read_text().replace("Engagement", "Attention"))
    with pytest.raises(DataError, match=r"TestLabels\.csv has no column Engagement; it has ClipID, Boredom, Attention"):
        read_daisee(root, "Test")
    shutil.rmtree(root / "DataSet/Validation")
    with pytest.raises(FileNotFoundError, match=r"DAiSEE not found: .*Validation does not exist\. Expected .*--data FOLDER"):
        read_daisee(root, "Validation")
