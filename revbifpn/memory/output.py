"""Results of a command line: shown on the terminal as they come, and written into files at the end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from revbifpn.memory.environment import describe_environment
from revbifpn.memory.fit import Fit
from revbifpn.memory.report import MemoryReport
from revbifpn.memory.rows import ComparisonRow
from revbifpn.memory.tables import Table, headline, to_csv, to_markdown

#: Each option names a file for what is said here.
_OUTPUTS = {
    "json": "all numbers",
    "csv": "the comparison",
    "markdown": "the tables",
    "png": "a picture: the step, or the comparison",
    "html": "one self-contained page",
}


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each kind of file that :meth:`Results.write` writes."""
    group = parser.add_argument_group("output")
    for kind, text in _OUTPUTS.items():
        group.add_argument(f"--{kind}", type=Path, metavar="FILE", help=text)


def check_outputs(args: argparse.Namespace) -> None:
    """Make sure, before minutes of work, that the results can be written.

    Raises:
        ValueError: if the folder of a file is not there.
    """
    for path in (*(getattr(args, kind) for kind in _OUTPUTS), args.snapshot):
        if path is not None and not path.resolve().parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")


@dataclass
class Results:
    """What a command found out.

    Attributes:
        tables: everything that was shown.
        reports: of each profiled step.
        rows: the comparison.
        fits: what fits into a memory.
    """

    tables: list[Table] = field(default_factory=list)
    reports: list[MemoryReport] = field(default_factory=list)
    rows: list[ComparisonRow] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)

    def show(self, tables: Sequence[Table]) -> None:
        """Print tables, and keep them for the files."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table as RichTable

        # Piped to a file, tables keep their full width: nothing is cut.
        console = Console(width=None if sys.stdout.isatty() else 240)
        for title, head, rows in tables:
            table = RichTable(title=title, title_justify="left", title_style="bold")
            for name in head:
                table.add_column(name, overflow="fold")
            for row in rows:
                table.add_row(*map(escape, row))
            console.print(table)
        self.tables += tables

    def write(self, args: argparse.Namespace, memory: str = "per_sample") -> None:
        """Write the files that the options ask for, and print their names and the environment.

        Args:
            args: with the options of :func:`add_output_options`.
            memory: the field of the rows that pictures show; one of :data:`.MEMORY`.

        Raises:
            ImportError: for a picture or a page without matplotlib.
        """
        environment = describe_environment()
        print(f"\n{environment}")
        if args.json:
            content = {
                "environment": environment,
                "reports": [report.to_dict() for report in self.reports],
                "comparison": [asdict(row) for row in self.rows],
                "fits": [asdict(fit) for fit in self.fits],
            }
            args.json.write_text(json.dumps(content, indent=1) + "\n")
        if args.csv:
            args.csv.write_text(to_csv(self.rows))
        if args.markdown:
            heads = "\n\n".join(headline(report) for report in self.reports)
            args.markdown.write_text(f"{heads}\n\n{to_markdown(self.tables)}\n{environment}\n")
        if args.png:
            from revbifpn.memory.plots import plot_comparison, plot_report

            if len(self.rows) == 1:
                plot_report(self.reports[0], args.png)
            else:
                plot_comparison(self.rows, args.png, memory)
        if args.html:
            from revbifpn.memory.page import write_page

            write_page(args.html, self.reports, self.rows, environment=environment, memory=memory)
        for kind in _OUTPUTS:
            if path := getattr(args, kind):
                print(f"wrote {path}")
