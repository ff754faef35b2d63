"""Tables in CSV files, read as text, with the line of each row, so that a fault can be named by its place."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from revbifpn.datasets.image_folders import DataError


@dataclass(frozen=True)
class CsvTable:
    """What a CSV file holds; header and cells are without the space around them.

    Attributes:
        path: the file.
        header: names of the columns.
        rows: (line, cells) of each row that is not blank; a row has as many cells as the header.
    """

    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_csv(path: Path) -> CsvTable:
    """Read a CSV file in UTF-8 that begins with a header.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: naming file and line: no header, rows of another length, or no CSV in UTF-8.
    """
    rows: list[tuple[int, list[str]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            if not any(header):
                raise DataError(f"{path} is empty: expected a line with the names of the columns, then the rows")
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise DataError(f"{path}, line {reader.line_num}: {len(cells)} cells, the header has {len(header)}")
                rows.append((reader.line_num, [cell.strip() for cell in cells]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8: {error}") from error
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return CsvTable(path, header, rows)
