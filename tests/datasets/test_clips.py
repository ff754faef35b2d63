"""Clip folders: what is read, and that all offenders are named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from revbifpn.datasets.clips import ClipSplit, check_splits, read_clip_folder
from revbifpn.datasets.image_folders import DataError

OUTPUTS = {"engagement": 4, "kind": 2}


def folder(root: Path, **tables: str) -> Path:
    """Tables, and an empty file for each path in them that does not begin with ``gone``."""
    for split, text in tables.items():
        (root / f"{split}.csv").write_text(text)
        for line in text.splitlines()[1:]:
            path = root / line.split(",")[0].strip()
            if path != root and not path.name.startswith("gone"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    return root


def test_a_folder_is_read(tmp_path: Path) -> None:
    text = "path,kind,user,engagement \n a/1.avi , 1,0042,3\n\nb/2.mp4,,7,0\nc/3.avi,,,\ngone.avi,1,7,1\n"
    split = read_clip_folder(folder(tmp_path, train=text), "train", OUTPUTS)
    assert [(clip.name, clip.labels, clip.user) for clip in split.clips] == [
        ("a/1.avi", (3, 1), "0042"),
        ("b/2.mp4", (0, -1), "7"),
    ]
    assert (split.unlabelled, split.without_file, split.faults) == (["c/3.avi"], ["gone.avi"], {})
    assert split.counts("engagement") == [1, 0, 0, 1]
    assert (
        str(split)
        == "train: 2 clips with labels; 1 without a label left out: c/3.avi; 1 labels without a file left out: gone.avi"
    )


def test_soft_labels_take_a_columns_place(tmp_path: Path) -> None:
    """The file that ``aggregate_votes.py --soft`` writes, its columns in any order; a clip without a row has no label."""
    root = folder(tmp_path, train="path,kind\na.avi,1\nb.avi,0\n")
    (root / "soft.csv").write_text("task,1,0,3,2\na.avi,0.1,0.7,0.2,0\n")
    split = read_clip_folder(root, "train", OUTPUTS, {"engagement": "soft.csv"})
    assert [clip.labels for clip in split.clips] == [(pytest.approx((0.7, 0.1, 0.0, 0.2)), 1), (-1, 0)]
    assert split.counts("engagement") == pytest.approx([0.7, 0.1, 0.0, 0.2])
    for text, message in (
        ("task,0,1\na.avi,1,0\n", r"has columns for 0, 1; the levels are 0, 1, 2, 3 \(.*--classes 0 1 2 3\)"),
        ("task,0,1,2,3\na.avi,1,1,0,0\n", "line 2: a.avi has no probabilities that sum to 1"),
        ("task,0,1,2,3\na.avi,x,1,0,0\n", "line 2: could not convert"),
        ("task,0,1,2,3\na.avi,1,0,0,0\na.avi,1,0,0,0\n", "line 3: a.avi is there twice"),
    ):
        (root / "soft.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            read_clip_folder(root, "train", OUTPUTS, {"engagement": "soft.csv"})


def test_missing_tables_and_columns(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.csv does not exist\. Expected .* path, engagement, kind"):
        read_clip_folder(tmp_path, "train", OUTPUTS)
    with pytest.raises(DataError, match=r"train\.csv has no column engagement, kind; it has path, mood"):
        read_clip_folder(folder(tmp_path, train="path,mood\n"), "train", OUTPUTS)


def test_all_offenders_are_named_at_once(tmp_path: Path) -> None:
    folder(
        tmp_path,
        train="path,user,engagement,kind\na.avi,1,4,0\nb.avi,2,0,x\nc.avi,3,0,0\nc.avi,3,0,0\ngone1.avi,4,0,0\n,4,0,0\n",
        val="path,user,engagement,kind\nc.mp4,3,1,1\nd.avi,5,-1,1\n",
    )
    splits = [read_clip_folder(tmp_path, name, OUTPUTS) for name in ("train", "val")]
    with pytest.raises(DataError) as caught:
        check_splits(splits)
    text = str(caught.value)
    for offender in (
        "level out of range 0..3: engagement=4 of a.avi (train.csv, line 2), engagement=-1 of d.avi (val.csv, line 3)",
        "level out of range 0..1: kind=x of b.avi (train.csv, line 3)",
        "c.avi (line 5)",
        "train.csv: line 7",
        "labels without a file (on_error='skip' leaves them out): gone1.avi",
        "users in two splits: 3 (train, val)",
        "clips in two splits: c (train, val)",
    ):
        assert offender in text


def test_labels_without_a_file_may_be_left_out_and_long_lists_are_cut(tmp_path: Path) -> None:
    gone = "".join(f"gone{i:02d}.avi,0,0\n" for i in range(12))
    split = read_clip_folder(folder(tmp_path, train=f"path,engagement,kind\na.avi,0,0\n{gone}"), "train", OUTPUTS)
    check_splits([split], may_miss=["train"])
    with pytest.raises(DataError, match=r"gone00\.avi, .*gone09\.avi, \.\.\. \(2 more\)$"):
        check_splits([split])


def test_a_split_without_clips_is_refused() -> None:
    with pytest.raises(DataError, match="splits without a clip that has a file and a label: test"):
        check_splits([ClipSplit("test", OUTPUTS)])
