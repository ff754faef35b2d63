"""Show that the tests see the faults that they are there for: break the code, and look for the test that fails.

Each entry of tests/mutations/*.toml is a fault that a programmer could make, and the test that has to fail with it. The change
is made in a copy of the working tree. By default each test first runs without the fault, and has to pass.

    python tools/mutate.py [--list] [--jobs N] [--skip-clean] [NAME ...]
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests/mutations"
NOT_COPIED = (".git", ".venv", "build", "data", "dist", "work_dirs")

#: Runs one test in a copy of the tree: (copy, test) -> pytest's exit status and what it printed.
Run = Callable[[Path, str], tuple[int, str]]


@dataclass(frozen=True)
class Mutation:
    """One fault and the test that sees it.

    Attributes:
        promise: how a row of docs/guarantees.md begins, or what else the test is there for.
        file: what is changed, relative to the root.
        text, replacement: what is there once, and what is put in its place.
        test: node id, relative to ``tests``.
    """

    name: str
    promise: str
    file: str
    text: str
    replacement: str
    test: str

    def applied(self, source: str) -> str:
        """The file's content with the fault in it.

        Raises:
            ValueError: if the text is not there exactly once.
        """
        if source.count(self.text) != 1:
            raise ValueError(f"text found {source.count(self.text)} times in {self.file}")
        return source.replace(self.text, self.replacement)


def load(folder: Path = FOLDER) -> list[Mutation]:
    """All entries, in the order of the files.

    Raises:
        ValueError: for two of one name.
    """
    tables = [tomllib.loads(path.read_text()) for path in sorted(folder.glob("*.toml"))]
    found = [Mutation(name, **entry) for table in tables for name, entry in table.items()]
    names = [mutation.name for mutation in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two mutations are named {', '.join(sorted(twice))}")
    return found


def copy_tree(target: Path) -> None:
    """Copy the working tree, without what commands have written into it."""
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, target)
        elif path.name not in NOT_COPIED and not path.name.endswith("_cache"):
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(path, target / path.name, symlinks=True, ignore=ignore)


def run_pytest(copy: Path, test: str) -> tuple[int, str]:
    """See :data:`Run`; exit status 124 if it takes half an hour."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:xdist", "-p", "no:cacheprovider", f"tests/{test}"]
    # No compiled files: a fault of the same length in the same second would not be seen.
    settings = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    try:
        done = subprocess.run(command, cwd=copy, env=os.environ | settings, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired:
        return 124, "took more than half an hour"
    return done.returncode, done.stdout + done.stderr


def verdict(status: int, output: str) -> str:
    """``killed`` if a test failed by itself, ``SURVIVED`` if it passed, else ``error``; with what pytest said."""
    failed = re.findall(r"^FAILED .*?(?: - (.*))?$", output, re.MULTILINE)
    if status == 0:
        return "SURVIVED" if re.search(r"\b\d+ passed", output) else "error: no test ran"
    if status == 1 and failed:
        return f"killed: {failed[0][:150]}"
    last = output.strip().splitlines()[-1:] or [""]
    return f"error: pytest ended with {status}: {last[0][:150]}"


def judge(mutation: Mutation, copy: Path, run: Run, clean: bool = True) -> str:
    """The verdict on one mutation; ``copy`` is as it was afterwards.

    Args:
        clean: whether the test has to pass without the fault first.
    """
    path = copy / mutation.file
    source = path.read_text()
    try:
        mutated = mutation.applied(source)
    except ValueError as error:
        return f"error: {error}"
    if clean:
        without = verdict(*run(copy, mutation.test))
        if without != "SURVIVED":
            return f"error: without the fault {without}"
    try:
        path.write_text(mutated)
        return verdict(*run(copy, mutation.test))
    finally:
        path.write_text(source)


def judge_all(mutations: Sequence[Mutation], run: Run, jobs: int, clean: bool) -> Iterable[tuple[Mutation, str]]:
    """Each mutation with its verdict, in order, as they come; one copy of the tree for each of ``jobs`` threads."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(jobs):
            copy = Path(folder, str(number))
            copy.mkdir()
            copy_tree(copy)
            copies.put(copy)

        def one(mutation: Mutation) -> str:
            copy = copies.get()
            try:
                return judge(mutation, copy, run, clean)
            finally:
                copies.put(copy)

        yield from zip(mutations, pool.map(one, mutations), strict=True)


def main(arguments: Sequence[str] | None = None, run: Run = run_pytest) -> int:
    """0 if every mutation was killed, 1 if one survived or could not be judged, 2 for a name that is not there."""
    parser = argparse.ArgumentParser(description="Break the code, and look for the test that fails.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutations, or parts of names; all by default")
    parser.add_argument("--list", action="store_true", help="name the mutations and their tests, and run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at once (default: 1)")
    parser.add_argument("--skip-clean", action="store_true", help="do not run each test without the fault first")
    args = parser.parse_args(arguments)
    known = load()
    chosen = [mutation for mutation in known if not args.names or any(name in mutation.name for name in args.names)]
    if not chosen:
        print(f"mutate: no mutation is named {', '.join(args.names)}; --list names all", file=sys.stderr)
        return 2
    if args.list:
        for mutation in chosen:
            print(f"{mutation.name:36} {mutation.test}")
        return 0
    counts = itertools.count(1)
    killed = 0
    for mutation, result in judge_all(chosen, run, args.jobs, not args.skip_clean):
        killed += result.startswith("killed")
        print(f"{next(counts):3}/{len(chosen)} {mutation.name}: {result}", flush=True)
    print(f"{killed} of {len(chosen)} were killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
