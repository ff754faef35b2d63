"""A tiny tree in DAiSEE's layout, with its quirks, of clips of a moving square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from revbifpn.datasets.clip_files import write_clip

USERS = {"Train": ("110001", "110002"), "Validation": ("400001", "400002"), "Test": ("500001", "500002")}
HEADER = "ClipID,Boredom,Engagement,Confusion,Frustration "  # the last one as in the original


def square(frames: int, speed: int, size: int = 16) -> NDArray[np.uint8]:
    """Frames (T, size, size, 3) of a square that moves ``speed`` pixels a frame, all of one grey that tells the time."""
    images = np.zeros((frames, size, size, 3), np.uint8)
    for time in range(frames):
        left = speed * time % (size - 4)
        images[time, 4:12, left : left + 4] = 255
        images[time, :2] = 8 * time
    return images


def make_daisee(root: Path) -> Path:
    """Two users a split with two clips each. In Train a row says .mp4, a clip has no row, and a row has no file."""
    for split, users in USERS.items():
        rows = [HEADER]
        for u, user in enumerate(users):
            for c in range(2):
                stem = f"{user}{100 * u + c:04d}"
                level = 2 * u + c
                write_clip(root / "DataSet" / split / user / stem / f"{stem}.avi", square(20 + 5 * c, 1 + level))
                suffix = ".mp4" if (split, u, c) == ("Train", 0, 1) else ".avi"
                rows.append(f"{stem}{suffix},{3 - level},{level},0,1")
        if split == "Train":
            extra = "1100010099"
            write_clip(root / "DataSet" / split / "110001" / extra / f"{extra}.avi", square(20, 1))
            rows.append("1100029999.avi,0,1,2,3")
        path = root / "Labels" / f"{split}Labels.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    (root / "DataSet" / "GenderClips").mkdir()
    (root / "DataSet" / "Train" / "notes.txt").write_text("no folder of a user")
    return root
