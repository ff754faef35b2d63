"""Class probabilities of images in a CSV file: what ``tools/aggregate_votes.py --soft`` writes, as training targets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

import torch
from torch import Tensor

from revbifpn.datasets.csv_files import read_csv
from revbifpn.datasets.image_folders import DataError

_SUM_TOLERANCE = 1e-3  # of numbers that somebody may have rounded to four digits


def read_soft_labels(path: Path, classes: Sequence[str], images: Sequence[str]) -> Tensor:
    """Read class probabilities: a column that names the image, the first, and a column for each class, in any order.

    Args:
        path: the CSV file. An image is named by its path below the split's folder, or by its file name where only one has it;
            rows of other images do not matter.
        classes: names of the classes, by their numbers.
        images: paths of the data set's images below the split's folder.

    Returns:
        (len(images), len(classes)) float32; rows sum to 1.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: naming what is wrong: classes that the file and the folders do not share, images without a row or with two,
            and rows that are no probabilities.
    """
    table = read_csv(path)
    if sorted(table.header[1:]) != sorted(classes):
        raise DataError(
            f"{path} has columns for the classes {', '.join(table.header[1:])}, the folders are {', '.join(sorted(classes))}"
        )
    columns = [table.header.index(name, 1) for name in classes]
    rows: dict[str, list[float]] = {}
    for line, cells in table.rows:
        name = PurePath(cells[0]).as_posix()
        if name in rows:
            raise DataError(f"{path}, line {line}: a second row for {name}")
        rows[name] = _probabilities([cells[column] for column in columns], f"{path}, line {line}")
    names = Counter(PurePath(image).name for image in images)
    by_name = {name: rows[name] for name, count in names.items() if count == 1 and name in rows}
    found = [rows.get(PurePath(image).as_posix(), by_name.get(PurePath(image).name)) for image in images]
    if missing := [image for image, row in zip(images, found, strict=True) if row is None]:
        more = f" and {len(missing) - 1} other images" if len(missing) > 1 else ""
        raise DataError(
            f"{path} has no row for {missing[0]}{more}: name images by their path below the split's folder, or by file names "
            "that only one image has"
        )
    return torch.tensor(found, dtype=torch.float32)


def _probabilities(cells: Sequence[str], where: str) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    total = math.fsum(values)
    if not all(value >= 0 for value in values) or not abs(total - 1) < _SUM_TOLERANCE:
        raise DataError(f"{where}: probabilities must not be negative and sum to 1, got {', '.join(cells)}")
    return [value / total for value in values]
