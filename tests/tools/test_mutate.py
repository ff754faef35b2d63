"""The table of mutations is right and complete, and tools/mutate.py tells those that are seen from those that survive."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_guarantees import rows
from tools import mutate
from tools.mutate import Mutation

MUTATIONS = mutate.load()
#: Of what no row of docs/guarantees.md promises.
OTHERS = {
    name for path in [mutate.FOLDER / "others.toml"] for name in re.findall(r"^\[(\S+)\]", path.read_text(), re.MULTILINE)
}

each = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)


@cache
def functions_of(path: Path) -> set[str]:
    """``test_name`` and ``TestClass::test_name`` of a file."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


@each
def test_a_mutation_fits_its_file_and_names_a_test(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text()
    mutated = mutation.applied(source)
    assert mutated != source
    if mutation.file.endswith(".py"):
        compile(mutated, mutation.file, "exec")
    path, _, function = mutation.test.partition("[")[0].partition("::")
    assert function in functions_of(ROOT / "tests" / path)


@each
def test_a_mutation_names_its_promise_and_one_of_the_tests_that_hold_it(mutation: Mutation) -> None:
    held = [cells[-1] for cells in rows() if cells[0].startswith(mutation.promise)]
    assert len(held) == (mutation.name not in OTHERS)
    test = mutation.test.partition("[")[0]
    for tests in held:
        # Named are functions, files, folders, and files by a pattern.
        named = [re.escape(name).replace(r"\*", "[^/]*") for name in re.findall(r"`([^`]+)`", tests)]
        assert any(re.match(rf"{name}(::|$)" if "::" in name or name.endswith("py") else name, test) for name in named)


@pytest.mark.parametrize("promise", [cells[0] for cells in rows()], ids=lambda promise: promise[:60])
def test_every_promise_has_a_mutation(promise: str) -> None:
    assert [mutation.name for mutation in MUTATIONS if promise.startswith(mutation.promise)]


MODULE = "def twice(x):\n    return x + x\n"
TEST = "from toy import twice\n\ndef test_twice():\n    assert twice(2) == 4\n"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A tree with one module and its test."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "toy.py").write_text(MODULE)
    (tmp_path / "tests/test_toy.py").write_text(TEST)
    return tmp_path


def toy_mutation(replacement: str, text: str = "x + x", file: str = "toy.py") -> Mutation:
    return Mutation("m", "twice", file, text, replacement, "test_toy.py::test_twice")


FIXTURE = "import pytest\n\n@pytest.fixture\ndef n():\n    return twice()\n\ndef test_twice(n):"
VERDICTS = {
    "what changes the result": (toy_mutation("x + 1"), "killed: assert 3 == 4"),
    "what changes nothing": (toy_mutation("2 * x"), "SURVIVED"),
    "what raises in the test": (toy_mutation("y"), "killed: NameError"),
    "what breaks the import": (toy_mutation("x\nimport nowhere"), "error: pytest ended with 4: "),
    "what breaks a fixture": (toy_mutation(FIXTURE, "def test_twice():", "tests/test_toy.py"), "error: pytest ended with 1: "),
    "what skips the test": (
        toy_mutation("import pytest; pytest.skip()", "assert twice(2) == 4", "tests/test_toy.py"),
        "error: no test ran",
    ),
    "what is not there": (toy_mutation("x + 1", "y + y"), "error: text found 0 times in toy.py"),
    "what is there twice": (toy_mutation("1", "x"), "error: text found 3 times in toy.py"),
}


@pytest.mark.parametrize("what", VERDICTS)
def test_verdicts(toy: Path, what: str) -> None:
    """By pytest itself, in a process. Only a test that fails by itself kills, not one that cannot begin."""
    mutation, expected = VERDICTS[what]
    before = {path: path.read_text() for path in toy.rglob("*.py")}
    assert mutate.judge(mutation, toy, mutate.run_pytest, clean=False).startswith(expected)
    assert {path: path.read_text() for path in toy.rglob("*.py")} == before


def test_a_test_that_fails_anyway_kills_nothing(toy: Path) -> None:
    (toy / "toy.py").write_text(MODULE.replace("x + x", "x + x + 1"))
    result = mutate.judge(toy_mutation("x - x"), toy, mutate.run_pytest)
    assert result.startswith("error: without the fault killed: assert 5 == 4")


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], toy: Path) -> None:
    """With a runner that sees one fault of two."""
    seen = toy_mutation("x + 1")
    unseen = Mutation("other", "twice", "toy.py", "x + x", "2 * x", "test_toy.py::test_other")
    monkeypatch.setattr(mutate, "load", lambda: [seen, unseen])
    monkeypatch.setattr(mutate, "copy_tree", lambda target: (target / "toy.py").write_text(MODULE))
    ran: list[str] = []

    def run(copy: Path, test: str) -> tuple[int, str]:
        ran.append(test)
        failed = "x + 1" in (copy / "toy.py").read_text()
        return (1, "FAILED tests/test_toy.py::test_twice - assert 3 == 4") if failed else (0, "1 passed in 0.01s")

    assert mutate.main([], run) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["  1/2 m: killed: assert 3 == 4", "  2/2 other: SURVIVED", "1 of 2 were killed"]
    assert ran == [seen.test] * 2 + [unseen.test] * 2  # each without the fault first
    assert mutate.main(["--skip-clean", "--jobs", "2", "m"], run) == 0
    assert ran[4:] == [seen.test]
    capsys.readouterr()
    assert mutate.main(["--list"], run) == 0
    assert "test_toy.py::test_other" in capsys.readouterr().out
    assert len(ran) == 5
    assert mutate.main(["nothing"], run) == 2
    assert "no mutation is named nothing" in capsys.readouterr().err


def test_a_copy_has_what_tests_need_and_leaves_the_tree_alone(tmp_path: Path) -> None:
    mutate.copy_tree(tmp_path)
    for name in ("revbifpn/__init__.py", "tests/mutations/others.toml", "configs", "tools/mutate.py", "pyproject.toml"):
        assert (tmp_path / name).exists()
    assert (tmp_path / "revbifpn/.mim/configs").is_symlink()
    assert not (tmp_path / ".venv").exists()
    assert not (tmp_path / "revbifpn/__init__.py").samefile(ROOT / "revbifpn/__init__.py")
