"""``revbifpn-memory`` as a user runs it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import rich.console

from revbifpn.memory import cli, commands

ROOT = Path(__file__).parents[2]
TINY = "tests.memory.conftest:make_tiny"


def test_a_report_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "csv", "markdown", "png", "html")}
    options = [option for kind, path in files.items() for option in (f"--{kind}", str(path))]
    assert (
        cli.main([TINY, "--batch", "4", "--image-size", "64x96", "--mode", "reversible", "--optimizer", "adamw", *options])
        == 0
    )
    shown = capsys.readouterr().out
    content = json.loads(files["json"].read_text())
    (report,) = content["reports"]
    assert (report["batch"], report["image"], report["optimizer"], report["mode"]) == (4, [64, 96], "adamw", "reversible")
    for text in (
        "predicted for cpu, batch 4 at 64x96",
        "Largest tensors at the peak",
        "optimizer state",
        "by stream",
        "stride 2",
    ):
        assert text in shown
    assert "torch" in content["environment"]
    (row,) = csv.DictReader(files["csv"].read_text().splitlines())
    assert (float(row["peak"]), float(row["per_sample"])) == (report["peak"], report["per_sample"])
    assert float(row["step_per_sample"]) == report["peak"] / 4
    assert (row["height"], row["width"], row["top1"], row["box_ap"]) == ("64", "96", "", "")
    assert "| kind of memory | size | share | what it is |" in files["markdown"].read_text()
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    page = files["html"].read_text()
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page


def test_all_modes_and_the_comparison(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        cli.main(["--compare", TINY, "resnet18", "--batch", "2", "--image-size", "64", "--json", str(tmp_path / "c.json")])
        == 0
    )
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "c.json").read_text())["comparison"]
    assert [(row["name"], row["mode"]) for row in rows] == [
        (TINY, "reversible"),
        (TINY, "exact"),
        (TINY, "stored"),
        ("resnet18", "stored"),
        ("resnet18", "checkpointing"),
    ]
    assert all(row["per_sample"] > 0 and row["macs"] > 0 and row["params"] > 0 for row in rows)
    assert "Training memory" in shown
    assert "checkpointing" in shown


def test_models_in_the_modes_that_their_names_say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    options = ["--batch", "2", "--image-size", "64", "--json", str(path)]

    def pairs() -> list[tuple[str, str]]:
        return [(row["name"], row["mode"]) for row in json.loads(path.read_text())["comparison"]]

    assert cli.main([f"{TINY}:exact", "resnet18:checkpointing", *options]) == 0
    assert pairs() == [(TINY, "exact"), ("resnet18", "checkpointing")]
    assert cli.main(["--compare", f"{TINY}:stored", "resnet18", *options]) == 0
    assert pairs() == [(TINY, "stored"), ("resnet18", "stored"), ("resnet18", "checkpointing")]
    assert cli.main(["--fit", "30 MB", f"{TINY}:exact", *options]) == 0
    assert {fit["mode"] for fit in json.loads(path.read_text())["fits"]} == {"exact"}
    capsys.readouterr()
    # --mode lets through what a name or a model has
    assert (
        cli.main(["--compare", TINY, "resnet18", f"{TINY}:exact", "--mode", "stored", "--mode", "reversible", *options]) == 0
    )
    assert pairs() == [(TINY, "reversible"), (TINY, "stored"), ("resnet18", "stored")]
    assert f"note: {TINY}:exact is left out by --mode: it would run in exact" in capsys.readouterr().err


def test_a_model_that_fails_does_not_take_the_others_with_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    failing, path = "tests.memory.test_steps:make_value_dependent", tmp_path / "c.json"
    assert (
        cli.main(["--compare", TINY, failing, "resnet18:stored", "--batch", "2", "--image-size", "64", "--json", str(path)])
        == 2
    )
    assert [row["name"] for row in json.loads(path.read_text())["comparison"]] == [TINY, TINY, TINY, "resnet18"]
    assert f"revbifpn-memory: {failing}: operator aten::_local_scalar_dense needs the values" in capsys.readouterr().err


def test_what_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--fit", "30 MB", TINY, "--image-size", "64", "--batch", "4", "--json", str(tmp_path / "f.json")]
    assert cli.main(options) == 0
    fits = json.loads((tmp_path / "f.json").read_text())["fits"]
    assert [(fit["mode"], fit["searched"]) for fit in fits] == [
        (mode, searched) for mode in ("reversible", "exact", "stored") for searched in ("batch", "image")
    ]
    assert all(0 < fit["peak"] <= 30_000_000 for fit in fits)
    assert "Fits into 30 MB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["revbifpn_s9"], "unknown model 'revbifpn_s9': did you mean"),
        (["revbifpn_s0", "--image-size", "100"], "image sides must be multiples of 32, got 100x100"),
        ([TINY, "--fit", "1 kB", "--image-size", "64"], "does not fit into 1 kB: a step with batch 1 at 64x64 takes at least"),
        ([TINY, "--fit", "much"], "not a size of memory: 'much'"),
        (["tests.memory.test_steps:make_value_dependent"], "operator aten::_local_scalar_dense needs the values"),
        (["missing.py"], "config not found: missing.py"),
        ([f"{TINY}:fast"], f"{TINY}:fast: unknown mode 'fast': choose from reversible, exact, stored, checkpointing"),
        (["--compare", "revbifpn_s0:fast"], "revbifpn_s0:fast: unknown mode 'fast': choose from reversible, exact"),
        (["--fit", "1 GB", "resnet18:exact"], "resnet18 has no mode 'exact': choose from stored, checkpointing"),
        ([TINY, "--mode", "checkpointing"], f"{TINY} is left out by --mode: it would run in reversible, exact, stored"),
        ([f"{TINY}:stored", "--mode", "exact"], f"{TINY}:stored is left out by --mode: it would run in stored"),
        ([TINY, "--snapshot", "x.pickle"], "--snapshot records one step: name one model in one mode"),
        ([TINY, "--optimizer", "adamwx"], "unknown optimizer 'adamwx'"),
        ([TINY, "--json", "no/such/folder/x.json"], "cannot be written: there is no folder no/such/folder"),
    ],
)
def test_mistakes_end_with_2_and_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error.replace("\n", " ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a model"),
        (["revbifpn_s0", "--batch", "0"], "--batch: must be a whole number of 1 at least, got '0'"),
        (["revbifpn_s0", "--image-size", "big"], "--image-size: must be a side or HEIGHTxWIDTH"),
        (["revbifpn_s0", "--device", "tpu"], "invalid choice: 'tpu'"),
        ([TINY, "--mode", "fast"], "--mode: unknown mode 'fast': choose from reversible, exact, stored, checkpointing"),
        (["--fit", "1 GB", TINY, "--png", "x.png"], "--fit makes a table and nothing to draw"),
    ],
)
def test_wrong_options_end_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_terminal_shows_what_is_being_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of large models take minutes."""
    terminal = io.StringIO()
    monkeypatch.setattr(rich.console, "Console", partial(rich.console.Console, file=terminal, force_terminal=True, width=100))
    with commands.working() as progress:
        progress("revbifpn_s0, exact, batch 64, 224x224")
    assert "revbifpn_s0, exact, batch 64, 224x224" in terminal.getvalue()


def test_the_tool_as_a_process() -> None:
    """Measured, with nothing on stderr that the user did not ask for."""
    command = [sys.executable, ROOT / "tools" / "profile_memory.py", TINY, "--measure", "--batch", "2", "--image-size", "32"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "measured for cpu" in done.stdout
    assert done.stderr.strip() == ""
    failed = subprocess.run([*command[:2], "revbifpn_s9"], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


def test_files_in_the_working_directory_do_not_take_the_place_of_libraries(tmp_path: Path) -> None:
    for name in ("rich", "random", "difflib"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was imported as a library')\n")
    (tmp_path / "my_networks.py").write_text("from torch import nn\ndef make(): return nn.Conv2d(3, 4, 3)\n")
    command = [sys.executable, ROOT / "tools" / "profile_memory.py", "--batch", "2", "--image-size", "32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for model in ("my_networks:make", "resnet18:stored"):
        done = subprocess.run([*command, model], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        assert f"{model.removesuffix(':stored')}, stored: " in done.stdout
