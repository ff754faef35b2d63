"""Where MMSegmentation and MMPretrain are, if ``tools/setup.sh`` installed them."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "openmmlab"

if FOLDER.is_dir():
    sys.path.append(str(FOLDER))  # behind everything else, so that it replaces no package of the environment
