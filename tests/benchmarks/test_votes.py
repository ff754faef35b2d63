"""The benchmarks of vote aggregation, at toy size, on simulated votes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import votes, votes_clips, votes_end_to_end, votes_tables
from tests.benchmarks.conftest import Command
from tests.votes.crowds import crowd_votes


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Two sets as the benchmark takes them."""
    for classes in (2, 3):
        table, truth = crowd_votes(items=40, classes=classes)
        folder = tmp_path / "sets" / f"of {classes}"
        folder.mkdir(parents=True)
        table.frame().rename(columns={"task": "item"}).to_csv(folder / "label.csv", index=False)
        pd.DataFrame({"item": range(40), "truth": truth})[1:].to_csv(folder / "truth.csv", index=False)
    return tmp_path / "sets"


def test_sets_and_times(command: Command, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(votes.VARIANTS, "K-RBM, H=2", ("k-rbm", {"n_iter": 3}))
    path = tmp_path / "votes.json"
    methods = ("majority vote", "Dawid-Skene", "KOS", "K-RBM, H=2")
    output = command(votes, "--votes", sets, "--seeds", 2, "--counts", 200, 400, "--methods", *methods, "--json", path)
    result = json.loads(path.read_text())
    two, three = result["sets"]["sets"]
    assert [row["name"] for row in two["rows"]] == list(methods)
    assert [len(row["runs"]) for row in two["rows"]] == [1, 1, 2, 2]
    assert "cannot" in three["rows"][2]
    assert two["rows"][2]["runs"][0]["nll"] is None
    for content, classes in ((two, 2), (three, 3)):
        table, truth = crowd_votes(items=40, classes=classes)
        accuracy = (table.counts.argmax(1) == truth)[1:].mean()  # the first item's truth is not known
        assert content["rows"][0]["runs"][0]["accuracy"] == pytest.approx(accuracy)
        assert content["tied_votes"] == table.tied
    assert len(result["time"]["rows"]) == 2 * 3  # KOS has four classes here, and cannot
    assert "| KOS | cannot |" in output
    assert votes_tables.goal_text(result["sets"]["sets"]).count("points from majority vote") == 2


def test_scores() -> None:
    """Of ten answers at 0.75 confidence five are right: 0.25 off; one of the ties is right by half."""
    right = np.array([True] * 5 + [False] * 5)
    assert votes.calibration_error(np.full(10, 0.75), right) == pytest.approx(0.25)
    assert votes.calibration_error(np.array([1.0, 0.55]), np.array([True, False])) == pytest.approx((0 + 0.55) / 2)


def test_end_to_end(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "end.json"
    options = ("--seeds", 2, "--images", 300, "--epochs", 5, "--methods", "majority", "dawid-skene")
    output = command(votes_end_to_end, *options, "--json", path)
    first, second = json.loads(path.read_text())["digits"]["runs"]
    assert first != second
    for run in (first, second):
        assert run[votes_end_to_end.TRUE]["labels"] == 1
        assert run[votes_end_to_end.SINGLE]["labels"] < run["majority vote, hard"]["labels"] < 1
        assert run["majority vote, hard"]["labels"] == run["majority vote, soft"]["labels"]
        assert run[votes_end_to_end.TRUE]["accuracy"] > 0.5  # one of ten by chance
    assert output.count("\n| ") == 1 + 6 + 1


def test_clips_end_to_end(command: Command, tmp_path: Path) -> None:
    """Soft labels and hard ones, through the tools."""
    pytest.importorskip("mmengine")
    pytest.importorskip("av")
    path = tmp_path / "clips.json"
    kinds = ("majority vote, soft", votes_clips.SINGLE)
    size = ("--seeds", 1, "--clips", 16, "--val-clips", 4, "--epochs", 1, "--jobs", 2)
    output = command(votes_clips, *size, "--kinds", *kinds, "--work-dir", tmp_path / "work", "--json", path)
    content = json.loads(path.read_text())
    (run,) = content["runs"]
    assert list(run) == list(kinds)
    assert content["floor"] == {"top1": 25, "kappa": 0, "mae": 1.5}
    assert "one seed" in output
    assert output.count("\n| ") == 1 + 1 + 2 + 1

    (data,) = tmp_path.glob("work/*/seed_0/data")
    votes_file = pd.read_csv(data / "votes.csv")
    assert votes_file.groupby("path")["worker"].nunique().tolist() == [5] * 16
    single, truth = pd.read_csv(data / "single.csv"), pd.read_csv(data / "train.csv", index_col="path")[votes_clips.OUTPUT]
    given = set(votes_file[["path", votes_clips.OUTPUT]].itertuples(index=False, name=None))
    assert set(single.itertuples(index=False, name=None)) < given
    assert run[votes_clips.SINGLE]["labels"] == 100 * (single[votes_clips.OUTPUT].to_numpy() == truth.to_numpy()).mean()
    shares = pd.read_csv(data / "majority_soft.csv", index_col="path").loc[truth.index]
    assert run["majority vote, soft"]["labels"] == 100 * (shares.to_numpy().argmax(1) == truth.to_numpy()).mean()
    logs = {folder.name: (folder / "output.log").read_text() for folder in data.parent.iterdir() if folder != data}
    assert "majority: 16 clips with labels" in logs["majority_vote_soft"]
    assert "single: 16 clips with labels" in logs["single_votes"]
