"""The command line: files from files, and one line for what its user can mend."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from revbifpn.votes import aggregate
from tests.votes.crowds import crowd_votes

TOOL = Path(__file__).parents[2] / "tools" / "aggregate_votes.py"


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    """Votes under names of their own."""
    table, _ = crowd_votes(items=30)
    names = {"task": "image", "worker": "who", "label": "animal"}
    frame = table.frame().rename(columns=names).assign(animal=lambda t: t["animal"].map({0: "ant", 1: "bee", 2: "cat"}))
    frame["image"] = [f"{place}.png" for place in frame["image"]]
    frame.to_csv(tmp_path / "votes.csv", index=False)
    return tmp_path / "votes.csv"


COLUMNS = ("--task-column", "image", "--worker-column", "who", "--label-column", "animal")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The tool's exit status."""
    monkeypatch.setattr(sys, "argv", ["aggregate_votes.py", *map(str, arguments)])
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_all_outputs(votes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / "out" / f"{name}.csv" for name in ("out", "soft", "workers", "review")}
    files["summary"] = tmp_path / "out" / "summary.json"
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    more = ("--method", "k-rbm", "--hidden", 1, "--hard", "--seed", 2)
    assert run(monkeypatch, votes, *COLUMNS, *options, *more, "--classes", "cat", "bee", "ant", "dog") == 0
    printed = capsys.readouterr()
    assert "30 items" in printed.out
    assert "labels:    K-RBM; cat: " in printed.out
    assert not printed.err
    labels, soft = pd.read_csv(files["out"]), pd.read_csv(files["soft"], index_col="image")
    assert list(labels.columns) == ["image", "animal", "expected_error", "votes"]
    assert list(soft.columns) == ["cat", "bee", "ant", "dog"]
    assert (soft.idxmax(axis=1).tolist() == labels["animal"]).all()
    assert set(soft.to_numpy().ravel()) == {0, 1}
    assert list(pd.read_csv(files["workers"]).columns) == ["who", "votes", "accuracy", "kappa", "skill"]
    assert sorted(pd.read_csv(files["review"])["image"]) == sorted(labels["image"])
    assert json.loads(files["summary"].read_text())["method"] == "k-rbm"


def test_levels_and_known_labels(votes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = tmp_path / "gold.csv"
    gold.write_text("image,animal\n0.png,cat\n")
    out = tmp_path / "labels.csv"
    options = ("--ordered", "--classes", "ant", "bee", "cat", "--gold", gold)
    assert run(monkeypatch, votes, *COLUMNS, "--out", out, *options) == 0
    labels = pd.read_csv(out).set_index("image")
    assert labels.loc["0.png", "animal"] == "cat"
    assert "expected_level" in labels
    table, _ = crowd_votes(items=30)
    assert labels.loc[[f"{task}.png" for task in range(1, 30)], "expected_level"].tolist() != (
        pytest.approx((aggregate(table, "majority").probas @ range(3))[1:].tolist())
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "has no column task, no column worker, no column label: its columns are 'image', 'who', 'animal'"),
        ((*COLUMNS, "--method", "kos"), "kos is for votes between two classes"),
        ((*COLUMNS, "--method", "glad", "--hidden", 2), "--hidden and --hard are for --method k-rbm"),
        ((*COLUMNS, "--ordered"), "the levels 'ant', 'bee', 'cat' are no numbers"),
        ((*COLUMNS, "--classes", "ant", "bee"), "none of the classes ant, bee: 'cat'"),
        ((*COLUMNS, "--gold", "missing.csv"), "No such file or directory: 'missing.csv'"),
    ],
)
def test_one_line_and_no_file(
    votes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    message: str,
) -> None:
    assert run(monkeypatch, votes, *options, "--out", tmp_path / "labels.csv", "--soft", tmp_path / "soft.csv") == 2
    error = capsys.readouterr().err
    assert error.startswith("aggregate_votes: ")
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["votes.csv"]


def test_soft_labels_of_a_method_without_any_stop_before_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, _ = crowd_votes(items=40, classes=2, votes=6)
    table.frame().to_csv(tmp_path / "votes.csv", index=False)
    outputs = ("--out", tmp_path / "labels.csv", "--soft", tmp_path / "soft.csv")
    assert run(monkeypatch, tmp_path / "votes.csv", "--method", "kos", *outputs) == 2
    assert "kos gives labels without probabilities" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["votes.csv"]


def test_without_crowd_kit_the_extra_is_named(tmp_path: Path) -> None:
    """In a process of its own, where the package cannot be imported."""
    (tmp_path / "crowdkit.py").write_text("raise ImportError('No module named crowdkit')")
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path({str(TOOL)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TOOL.parents[1], timeout=300)
    assert done.returncode == 2
    assert done.stderr == (
        "aggregate_votes: vote aggregation needs crowd-kit and pandas (No module named crowdkit): "
        "pip install 'revbifpn[votes]'\n"
    )
