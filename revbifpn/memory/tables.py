"""Reports as text: rows for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from revbifpn.memory.fit import Fit
from revbifpn.memory.report import CATEGORY_TEXT, MemoryReport
from revbifpn.memory.rows import ACCURACY, ComparisonRow, accuracies_in
from revbifpn.reversible.units import format_bytes

#: A table: its title, its head, and its rows.
Table = tuple[str, list[str], list[list[str]]]

#: So many tensors a report names.
LARGEST = 10
#: The columns of CSV that stand for a row's ``image``.
_SIZE = ("height", "width")


def report_tables(report: MemoryReport) -> list[Table]:
    """Put everything that a report says into tables."""
    share = [
        [name, format_bytes(nbytes), f"{100 * nbytes / report.peak:.1f}%", CATEGORY_TEXT[name]]
        for name, nbytes in report.categories.items()
    ]
    tables: list[Table] = [("At the peak", ["kind of memory", "size", "share", "what it is"], share)]
    for title, sums in (
        ("Activations and temporaries at the peak, by stage", report.stages),
        ("by stream", report.streams),
        ("by kind of tensor", report.kinds),
    ):
        tables.append((title, ["", "size"], [[name, format_bytes(nbytes)] for name, nbytes in list(sums.items())[:LARGEST]]))
    named = [t for t in report.tensors if t.operator or t.module][:LARGEST]
    largest = [
        [format_bytes(t.nbytes), "x".join(map(str, t.shape)), t.dtype, t.kind, t.operator or "-", t.module or "-"]
        for t in named
    ]
    tables.append(("Largest tensors at the peak", ["size", "shape", "dtype", "kind", "operator", "module"], largest))
    return tables


def headline(report: MemoryReport) -> str:
    """Return the report in two lines."""
    size = f" at {report.image[0]}x{report.image[1]}" if report.image else ""
    mode = f", {report.mode}" if report.mode else ""
    point = report.peak_point
    where = f"{point.operator} of {point.module}" if point.module else point.operator
    return (
        f"{report.name}{mode}: {format_bytes(report.peak)} {report.method} for {report.device}, batch {report.batch}{size}, "
        f"optimizer {report.optimizer}, {report.precision}\n"
        f"{format_bytes(report.per_sample)} a sample; the peak is in {point.phase}, at operator {point.index} of "
        f"{report.num_operators}: {where}"
    )


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """Make a table of rows, with a column for each published accuracy that one of them has."""
    accuracies = accuracies_in(rows)
    head = ["model", "mode", "image", "params", "GMACs", *(f"published {ACCURACY[name]}" for name in accuracies)]
    return (
        "Training memory",
        [*head, "per sample", "whole step", "batch", "figure"],
        [_cells(row, accuracies) for row in rows],
    )


def _cells(row: ComparisonRow, accuracies: Sequence[str]) -> list[str]:
    return [
        row.name,
        row.mode,
        _or_dash(row.image, lambda image: f"{image[0]}x{image[1]}"),
        _or_dash(row.params, lambda params: f"{params / 1e6:.2f} M"),
        _or_dash(row.macs, lambda macs: f"{macs / 1e9:.3g}"),
        *(_or_dash(getattr(row, name), lambda accuracy: f"{accuracy:.1f}") for name in accuracies),
        _or_dash(row.per_sample, format_bytes),
        _or_dash(row.peak, format_bytes),
        _or_dash(row.batch, str),
        row.method,
    ]


def _or_dash(value: Any, write: Callable[[Any], str]) -> str:
    return "-" if value is None else write(value)


def fit_table(fits: Sequence[Fit | tuple[str, str, str]], memory: int) -> Table:
    """Return what fits; a failure is (name, mode, why)."""
    rows = []
    for fit in fits:
        if isinstance(fit, Fit):
            size = f"{fit.image[0]}x{fit.image[1]}"
            found = (f"batch {fit.batch}", size) if fit.searched == "batch" else (size, f"batch {fit.batch}")
            limit = " (or more: the search ended here)" if fit.limited else ""
            rows.append([fit.name, fit.mode, f"{found[0]}{limit}", found[1], format_bytes(fit.peak)])
        else:
            rows.append([fit[0], fit[1], "nothing", fit[2], "-"])
    return (f"Fits into {format_bytes(memory)}", ["model", "mode", "largest", "with", "takes"], rows)


def to_markdown(tables: Sequence[Table]) -> str:
    """Write tables in GitHub's Markdown."""
    parts = []
    for title, head, rows in tables:
        lines = [f"**{title}**", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def to_csv(rows: Sequence[ComparisonRow]) -> str:
    """Write rows as they are, one column for each field of :class:`.ComparisonRow`; what is unknown is empty."""
    names = [name for field in fields(ComparisonRow) for name in (_SIZE if field.name == "image" else (field.name,))]
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow(asdict(row) | dict(zip(_SIZE, row.image or (None, None), strict=True)))
    return out.getvalue()
