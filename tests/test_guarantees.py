"""docs/guarantees.md: every promise names the tests that hold it, and they exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs/guarantees.md"
HEAD = ["promise", "how it is kept", "tests"]


def rows() -> list[list[str]]:
    """The cells of all rows, without head and rule."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [cells for cells in table if cells != HEAD and not set("".join(cells)) <= set("|-")]


@cache
def names_in(path: Path) -> set[str]:
    """The names of a file's test functions and test classes."""
    nodes = ast.parse(path.read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0][:60])
def test_a_promise_names_tests_that_exist(cells: list[str]) -> None:
    assert len(cells) == len(HEAD)
    named = re.findall(r"`([^`]+)`", cells[-1])
    assert named, "no test is named"
    for name in named:
        path, _, function = name.partition("::")
        files = [file for file in (ROOT / "tests").glob(path) if file.is_dir() or file.name.startswith("test_")]
        assert files, f"there is no tests/{path}"
        assert not function or function in names_in(files[0]), f"tests/{path} has no {function}"


def test_rows_are_found() -> None:
    text = PAGE.read_text()
    assert len(rows()) == sum(line.startswith("| ") for line in text.splitlines()) - text.count("| promise |") > 50
