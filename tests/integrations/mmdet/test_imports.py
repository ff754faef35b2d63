"""What there is where MMDetection, or MMCV too, is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

PARTS = ("RevBiFPN", "Recomputed", "RevSiloNeck")
LEAN = ("LeanHRFPN", "LeanFPN", "LeanRPNHead", "LeanFCNMaskHead")

SCRIPT = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
import revbifpn.integrations.mmdet as package
from mmengine.registry import MODELS
print([name for name in {names!r} if MODELS.get(name) is not None])
print(all(hasattr(package, name) for name in package.__all__))
"""


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [(["mmcv", "mmdet"], ["RevBiFPN", "Recomputed"]), (["mmdet"], list(PARTS))],
    ids=["mmengine", "mmcv"],
)
def test_parts_that_need_less_are_there_with_less(hidden: list[str], expected: list[str]) -> None:
    script = SCRIPT.format(hidden=hidden, names=PARTS)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [str(expected), "True"]


def test_all_parts_are_there_with_mmdetection() -> None:
    from mmdet.registry import MODELS

    import revbifpn.integrations.mmdet as package

    assert all(MODELS.get(name) is not None for name in (*PARTS, *LEAN))
    assert {"RevBiFPNBackbone", "RevSiloNeck", "recomputed_class", *LEAN} == set(package.__all__)
