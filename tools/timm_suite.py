"""Run the tests that timm keeps for its own models on RevBiFPN's, S0 to S6.

Fetches the source release of the timm that is installed (with pip, into work_dirs/timm), and runs its
``tests/test_models.py``: the tests of every model on S0 to S6, and those of a few models on S0.

    python tools/timm_suite.py [-k EXPRESSION] [any other option of pytest]

Tests with "pretrained" in their name download the published weights.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import timm

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "work_dirs/timm"
PREFIX = "revbifpn_"

# Tests of any model that timm runs on a few of its own. What else names its models there is about those models.
ON_A_FEW = (
    "test_reset_classifier_keeps_pool",
    "test_features_only_grad_checkpointing_backward",
    "test_prune_intermediate_layers_params_used",
    "test_prune_intermediate_layers_last_feature",
    "test_forward_after_prune_intermediate_layers",
    "test_head_hidden_size",
)


def fetch() -> Path:
    """timm's source release, unpacked.

    Raises:
        SystemExit: if pip cannot have it.
    """
    release = FOLDER / f"timm-{timm.__version__}"
    archive = FOLDER / f"{release.name}.tar.gz"
    if not archive.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        package = f"timm=={timm.__version__}"
        options = ["-q", "--no-deps", "--no-binary", "timm", "-d", str(FOLDER)]
        if subprocess.run([sys.executable, "-m", "pip", "download", *options, package]).returncode != 0:
            sys.exit(f"timm_suite: pip could not download the source of {package}; put {archive.name} into {FOLDER}")
    if not (release / "tests/test_models.py").is_file():
        with tarfile.open(archive) as content:
            content.extractall(FOLDER, filter="data")
    return release


def main() -> None:
    release = fetch()
    paths = [str(Path(__file__).parent), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "pytest", "-p", Path(__file__).stem, "tests/test_models.py", *sys.argv[1:]]
    # From its folder the tests import the timm that lies there, of the same version as the installed one.
    done = subprocess.run(command, cwd=release, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    sys.exit(done.returncode)


# What follows runs inside pytest, of which this file is a plugin.


def pytest_configure(config: pytest.Config) -> None:
    """Let timm's tests see RevBiFPN as the only models there are."""
    import revbifpn  # noqa: F401  (registers the timm models)

    config.addinivalue_line("markers", "timeout: of pytest-timeout")
    list_models, list_pretrained = timm.list_models, timm.list_pretrained

    def ours(filter: str | list[str] = "", module: str | list[str] = "", *args: Any, **kwargs: Any) -> list[str]:
        # Filters and modules name timm's families: models of unusual kinds, and those that have forward_intermediates.
        return [] if filter else list_models(f"{PREFIX}*", "", *args, **kwargs)

    timm.list_models = ours
    timm.list_pretrained = lambda *args, **kwargs: [] if args else list_pretrained(f"{PREFIX}*")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Put S0 in place of the models that timm chose."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        if metafunc.function.__name__ in ON_A_FEW and str(mark.args[0]).startswith("model_name"):
            first = mark.args[1][0]
            mark.args[1][:] = [f"{PREFIX}s0" if isinstance(first, str) else (f"{PREFIX}s0", *first[1:])]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about timm's models."""
    others = [item for item in items if PREFIX not in item.name]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if PREFIX in item.name]


if __name__ == "__main__":
    main()
