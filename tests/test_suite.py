"""What the suite asks of itself."""

from __future__ import annotations

import ast
from pathlib import Path


def subprocesses(source: str) -> list[ast.Call]:
    """The calls of ``subprocess.run`` and its kin, which wait for a process's end."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = ("run", "call", "check_call", "check_output")
    return [call for call in calls if ast.unparse(call.func) in [f"subprocess.{name}" for name in names]]


def test_every_subprocess_has_a_timeout() -> None:
    found = 0
    for path in Path(__file__).parent.rglob("*.py"):
        for call in subprocesses(path.read_text()):
            found += 1
            assert "timeout" in [keyword.arg for keyword in call.keywords], f"{path}:{call.lineno}"
    assert found > 10
