"""DAiSEE (Gupta et al., "DAiSEE: Towards User Engagement Recognition in the Wild") in the layout that it is handed out in.

    root/DataSet/{Train,Validation,Test}/<user>/<clip>/<clip>.avi
    root/Labels/{Train,Validation,Test}Labels.csv       ClipID,Boredom,Engagement,Confusion,Frustration

What a reader of these files has to know: the last column's name ends in a space, some rows name ``.mp4`` where the file is an
``.avi``, some clips have no row and some rows no file, and ids have up to ten digits and begin with the user's six: they are
text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath

from revbifpn.datasets.clip_files import CLIP_SUFFIXES
from revbifpn.datasets.clips import Clip, ClipSplit, add_clip, columns_of, read_level
from revbifpn.datasets.csv_files import read_csv

SPLITS = ("Train", "Validation", "Test")
#: The affective states, in the order of the columns; each has the levels 0 (very low) to 3 (very high).
STATES = ("Boredom", "Engagement", "Confusion", "Frustration")
LEVELS = 4


def read_daisee(root: Path, split: str, outputs: Mapping[str, int] | None = None) -> ClipSplit:
    """Read what a split holds. Files are looked for, not opened.

    Args:
        root: the folder with ``DataSet`` and ``Labels``.
        split: one of :data:`SPLITS`.
        outputs: the states that are wanted, with 4 levels each; None for all.

    Raises:
        FileNotFoundError: if a folder or file is missing, with the layout that is expected.
        DataError: if the table has not the columns that it needs.
    """
    outputs = dict.fromkeys(STATES, LEVELS) if outputs is None else outputs
    folder, labels = root / "DataSet" / split, root / "Labels" / f"{split}Labels.csv"
    for path in (folder, labels):
        if not path.exists():
            raise FileNotFoundError(
                f"DAiSEE not found: {path} does not exist. Expected {root}/DataSet/{{{','.join(SPLITS)}}}/<user>/<clip>/<clip>"
                f".avi and {root}/Labels/{{{','.join(SPLITS)}}}Labels.csv. Link your copy there, or name another place with "
                "--data FOLDER"
            )
    found = ClipSplit(split, outputs)
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*/*/*")):
        if path.suffix.lower() not in CLIP_SUFFIXES:
            continue
        if path.stem in files:
            found.blame("clips with two files", f"{path} and {files[path.stem]}")
            continue
        files[path.stem] = path
    table = read_csv(labels)
    columns = columns_of(table, ["ClipID", *outputs])
    rows: dict[str, tuple[int, ...]] = {}
    for line, cells in table.rows:
        stem = PurePath(cells[columns["ClipID"]]).stem
        if stem in rows:
            found.blame(f"named twice in {labels}", f"{stem} (line {line})")
            continue
        where = f"{stem} ({labels.name}, line {line})"
        rows[stem] = tuple(read_level(found, cells[columns[output]], output, where) for output in outputs)
    for stem, path in files.items():
        if stem in rows:
            add_clip(found, Clip(stem, path, rows[stem], path.parts[-3]))
        else:
            found.unlabelled.append(stem)
    found.without_file = [stem for stem in rows if stem not in files]
    return found
