"""README and guides: their figures are the benchmarks', their links lead somewhere, their examples and commands run."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import runpy
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import revbifpn
from benchmarks import readme
from revbifpn.memory.environment import describe, environment
from revbifpn.memory.sources import subject_and_mode
from tests.conftest import ROOT

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("model_zoo/*.md")})
COMMANDS = {"revbifpn-memory": "revbifpn.memory.cli", "revbifpn-train": "revbifpn.training.cli.train"}
COMMANDS["revbifpn-test"] = "revbifpn.training.cli.test"
#: What the guides name that is a user's own, or is made by another command.
PLACEHOLDERS = ("my_config.py", "gpu.json", "work_dirs/")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks of a language; before a Python one stands what a comment above it says of its needs."""
    found = re.findall(rf"(<!-- example: [^\n]*-->\n)?```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    return [f"{'# needs ' if above else ''}{above}{code}" for above, code in found]


# Figures


@each_page
def test_figures_are_what_the_benchmarks_measured(page: Path) -> None:
    """Or a line in their place says that they were not measured; ``python -m benchmarks.readme --check`` lists those."""
    text = page.read_text()
    after, _ = readme.render(text)
    assert after == text, "python -m benchmarks.readme writes this page anew"


def test_every_page_with_figures_is_written(tmp_path: Path) -> None:
    shown = {page: re.findall(r"^<!-- figures: (\S+) -->", page.read_text(), re.MULTILINE) for page in PAGES}
    assert {page for page, names in shown.items() if names} <= set(readme.pages())
    assert {name for names in shown.values() for name in names} == set(readme.FIGURES), "figures that no page shows"


PAGE = "Before.\n<!-- figures: macs -->\nold\n<!-- /figures -->\nAfter.\n"
MACS = [{"model": "revbifpn_s0", "image_size": 224, "macs_torch": 1, "macs_published_rules": 2000, "macs_published": 2000}]


def test_a_block_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "macs.json").write_text(json.dumps(MACS))
    after, missing = readme.render(PAGE, tmp_path)
    assert not missing
    assert after.startswith("Before.\n<!-- figures: macs -->\n| model |")
    assert "| revbifpn_s0 | 224 | 1 | 2,000 | 2,000 |" in after
    assert "`python -m benchmarks.macs --json benchmarks/macs.json`" in after
    assert after.endswith("<!-- /figures -->\nAfter.\n")
    assert "old" not in after
    assert readme.render(after, tmp_path) == (after, [])


def test_a_measured_block_says_where_and_when(tmp_path: Path) -> None:
    rows = [{"model": "revbifpn_s0", "level_errors_by_bits": {"13": [1e-4, 2e-4, 3e-4, 4e-4]}}]
    (tmp_path / "exact_reversal.json").write_text(json.dumps({"forward": {"environment": environment(), "rows": rows}}))
    text, missing = readme.block("exact_forward", tmp_path)
    assert not missing
    assert "| revbifpn_s0 | 13 | 1.0e-04 |" in text
    assert text.endswith(f"; {describe(environment())}*\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "*Not measured yet: benchmarks/engine_cost.json is not there. `python -m benchmarks.engine_cost --json"),
        (
            {"environment": {}},
            "*Not measured anew: benchmarks/engine_cost.json has no 'threads'. `python -m benchmarks.engine",
        ),
        ({"model": "revbifpn_s0"}, "*Not measured anew: benchmarks/engine_cost.json has no 'seconds'."),
    ],
    ids=["no file", "another environment", "another content"],
)
def test_figures_that_are_not_there_are_named(tmp_path: Path, content: Any, message: str) -> None:
    if content is not None:
        (tmp_path / "engine_cost.json").write_text(json.dumps(content))
    text, missing = readme.block("engine_cost", tmp_path)
    assert text.startswith(message)
    assert text.count("\n") == 1
    assert [source.file for source in missing] == ["engine_cost.json"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (PAGE.replace("macs", "max"), "no figures are called 'max': choose from equal_accuracy, "),
        (PAGE.replace("<!-- /figures -->", ""), "<!-- figures: macs -->: a block of figures begins with"),
        ("<!-- /figures -->\n", "<!-- /figures -->: a block of figures begins with"),
    ],
)
def test_wrong_markers_are_named(page: str, message: str) -> None:
    with pytest.raises(readme.MarkerError, match=re.escape(message)):
        readme.render(page)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["readme", "--check"])
    with pytest.raises(SystemExit, match="1"):
        readme.main()
    assert capsys.readouterr().out.startswith("README.md: differs\n")
    assert (tmp_path / "README.md").read_text() == PAGE
    monkeypatch.setattr(sys, "argv", ["readme"])
    readme.main()
    assert capsys.readouterr().out.startswith("README.md: written\n")
    assert (tmp_path / "README.md").read_text() == readme.render(PAGE)[0] != PAGE
    (tmp_path / "README.md").write_text("<!-- figures: max -->\n<!-- /figures -->\n")
    with pytest.raises(SystemExit, match=r"readme: README.md: no figures are called 'max'"):
        readme.main()


# Size and links


@pytest.mark.parametrize(("name", "lines"), [("README.md", 150), ("CONTRIBUTING.md", 70)])
def test_pages_that_are_read_in_one_sitting_stay_short(name: str, lines: int) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= lines


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: there is no {name}"
        if anchor:
            assert anchor in anchors(target), f"{link}: no heading of {target.name} has this anchor"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# Examples


@each_page
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, with small stand-ins for what the reader brings along."""
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("revbifpn_s0").state_dict(), "revbifpn_s0.pth.tar")
    names: dict[str, Any] = stand_ins()
    for number, code in enumerate(blocks(page, "python")):
        if re.search(r"^_base_ = ", code, re.MULTILINE):
            check_config(code, tmp_path / f"config_{number}.py")
            continue
        program = compile(code, f"{page.name}, example {number}", "exec")
        if not code.startswith("# needs") or torch.cuda.is_available():
            exec(program, names)


def stand_ins() -> dict[str, Any]:
    fine, coarse = torch.randn(2, 8, 16, 16), torch.randn(2, 12, 8, 8)
    up = nn.Sequential(nn.Conv2d(12, 8, 1), nn.Upsample(scale_factor=2))
    return {
        **{"torch": torch, "nn": nn, "timm": timm, "revbifpn": revbifpn, "images": torch.randn(2, 3, 64, 64)},
        **{"fine": fine, "coarse": coarse, "fine_to_coarse": nn.Conv2d(8, 12, 3, 2, 1), "coarse_to_fine": up},
        "loader": [(torch.zeros(64, 3, 224, 224), torch.zeros(64, dtype=torch.long))],
    }


def check_config(code: str, path: Path) -> None:
    """Build the model of an MMDetection config, whose base lies in the repository."""
    pytest.importorskip("mmdet")
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    path.write_text(code.replace('"configs/', f'"{ROOT.as_posix()}/configs/'))
    cfg = Config.fromfile(path)
    init_default_scope("mmdet")
    model = MODELS.build(cfg.model)
    for part in ("backbone", "neck"):
        if "type" in (written := {**runpy.run_path(str(path))}["model"].get(part, {})):
            assert type(getattr(model, part)).__name__ == written["type"]


# Commands


def commands(page: Path) -> list[str]:
    """The command lines of a page's shell blocks, each in one line."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


LINES = [pytest.param(line, id=f"{page.relative_to(ROOT)}: {line}") for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("line", LINES)
def test_commands_are_right(line: str) -> None:
    """Programs and files exist, and programs of this project know the options."""
    words = shlex.split(re.sub(r"[\[\]]|\.\.\.", " ", line), comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    for word in words:
        if re.fullmatch(r"(configs|tools|benchmarks|tests|docs|revbifpn|requirements)/\S+", word):
            assert (ROOT / word).exists() or word.startswith(PLACEHOLDERS) or word.endswith(".json"), f"there is no {word}"
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if (program := program_of(words)) is not None:
        name, arguments = program
        known = help_of(name)
        for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            assert re.search(rf"{option}\b", known), f"{name} has no {option}"
        if name == "revbifpn.memory.cli":
            check_models(arguments)


def program_of(words: list[str]) -> tuple[str, list[str]] | None:
    """A program of this project in a command line, and what stands behind it."""
    for position, word in enumerate(words):
        if word in COMMANDS:
            return COMMANDS[word], words[position + 1 :]
        if word.startswith("tools/") and word.endswith(".py"):
            return word, words[position + 1 :]
        if word == "-m" and words[position + 1].startswith("benchmarks."):
            return words[position + 1], words[position + 2 :]
    return None


@cache
def help_of(program: str) -> str:
    """What a program prints with ``--help``, in this process, where its libraries are loaded."""
    before, sys.argv = sys.argv, [program, "--help"]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            if program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                importlib.import_module(program).main()
    finally:
        sys.argv = before
    assert "usage:" in printed.getvalue(), program
    return printed.getvalue()


def check_models(arguments: list[str]) -> None:
    """The models of a line of ``revbifpn-memory``, with their modes."""
    for spec in arguments:
        if re.match(r"(revbifpn|efficientnet|hrnet|resnet)_?\w*(:|$)", spec) and not spec.endswith((".html", ".png")):
            subject, mode = subject_and_mode(spec)
            assert subject.name == spec.partition(":")[0]
            assert mode is None or ":" in spec


def test_examples_are_found() -> None:
    """The patterns above find what they are for."""
    assert len(blocks(ROOT / "README.md", "python")) >= 3
    assert (
        sum("torch.cuda.graph" in code and code.startswith("# needs") for code in blocks(ROOT / "docs/engine.md", "python"))
        == 1
    )
    assert len(commands(ROOT / "README.md")) >= 8
