#!/usr/bin/env bash
# Set up the development environment in a virtual environment: torch, the detection stack, this project.
#
#   tools/setup.sh [VENV]        default: .venv
#
# Safe to run again: pip skips what is there, and mmcv is compiled only when its operators do not run.
# PYTHON chooses the interpreter (3.11 or newer), MAX_JOBS the number of compilers at a time.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}
base_python=${PYTHON:-python3}
constraints=requirements/constraints.txt

say() { printf '\n==> %s\n' "$*"; }
die() { printf '\nsetup: %s\n' "$*" >&2; exit 1; }

"$base_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || die "$("$base_python" --version) is too old: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"

[ -x "$venv/bin/python" ] || { say "Creating $venv"; "$base_python" -m venv "$venv"; }
python="$PWD/$venv/bin/python"
case $venv in /*) python="$venv/bin/python" ;; esac
pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip "$@"; }

say "Installing torch and the build tools"
pip install -q -c "$constraints" torch torchvision setuptools wheel packaging ninja psutil

ops_run() {
    (cd / && "$python" - <<'PY') >/dev/null 2>&1
import torch
from mmcv.ops import nms

boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 9.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
_, keep = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)
assert keep.tolist() == [0, 2], keep
PY
}

if ! ops_run; then
    command -v g++ >/dev/null || die "g++ was not found: mmcv's operators are compiled from source; install a C++20 compiler (g++ 10 or newer)"
    say "Compiling mmcv's operators (about 6 minutes on 2 cores; pip keeps the wheel for the next time)"
    # With build isolation mmcv is built without torch in sight, and silently leaves its operators out.
    # Its build asks for C++17, torch's headers need C++20: of several -std options the last one wins.
    wrapper=$(mktemp -d)
    trap 'rm -rf "$wrapper"' EXIT
    printf '#!/bin/sh\nexec g++ "$@" -std=c++20\n' >"$wrapper/g++-cxx20"
    chmod +x "$wrapper/g++-cxx20"
    PATH="$(dirname "$python"):$PATH" CXX="$wrapper/g++-cxx20" MAX_JOBS="${MAX_JOBS:-$(nproc)}" MMCV_WITH_OPS=1 \
        pip install -q --no-build-isolation -c "$constraints" onedl-mmcv
fi

say "Installing revbifpn with its extras"
pip install -q -c "$constraints" -e '.[mmdet,demo,dev]'

ops_run || die "mmcv.ops.nms does not run, so no detector can be trained. mmcv was built without its compiled operators:
  remove it ($venv/bin/pip uninstall onedl-mmcv; $venv/bin/pip cache remove onedl_mmcv) and run this again with g++ 10 or newer on PATH."
# crowd-kit comes without its dependencies, below: they bring a release of transformers in which MMPretrain does not import,
# and aggregating votes needs none of it.
broken=$(pip check | grep -v -e '^crowd-kit ' -e '^No broken requirements' || true)
[ -z "$broken" ] || die "packages do not fit together:
$broken"
pip install -q --no-deps -c "$constraints" crowd-kit

# MMSegmentation and MMPretrain are for tests alone, which add this folder to sys.path and are skipped without it.
openmmlab="$("$python" -c 'import sys; print(sys.prefix)')/openmmlab"
if ! cmp -s requirements/openmmlab.txt "$openmmlab/requirements.txt"; then
    say "Installing MMSegmentation and MMPretrain into $openmmlab (45 MB)"
    rm -rf "$openmmlab"
    if pip install -q --no-deps --target "$openmmlab" -r requirements/openmmlab.txt; then
        rm -rf "$openmmlab/tests" # model-index's own, by a mistake in its wheel
        cp requirements/openmmlab.txt "$openmmlab/requirements.txt"
    else
        say "They could not be installed: their tests will be skipped"
    fi
fi

say "Ready: $venv (mmcv's compiled operators run)"
