"""``revbifpn-memory``: how much memory training takes, where it goes, and what fits.

    revbifpn-memory revbifpn_s0 --batch 64                          one model in every mode
    revbifpn-memory configs/demo/mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py --measure
    revbifpn-memory --compare revbifpn_s0 revbifpn_s3 efficientnet_b3 hrnet_w18 --html memory.html
    revbifpn-memory --fit "24 GiB" revbifpn_s6 --device cuda
    revbifpn-memory --paper imagenet --png figure.png

A model is a timm name, an MMEngine config, or module:callable. Figures are predicted on fake tensors unless --measure is
given; MB and GB are powers of ten.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when libraries are loaded: torch's profiler and MMEngine report on stderr what no user asked for.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from revbifpn.memory.compare import PAPER_DIFFERENCES, compare, paper_points, paper_subjects, row_of
from revbifpn.memory.environment import describe_environment
from revbifpn.memory.fake import UnsupportedOperatorError
from revbifpn.memory.fit import Fit, largest_batch, largest_image, parse_bytes
from revbifpn.memory.report import MemoryReport
from revbifpn.memory.rows import PRINTED, TOP1, ComparisonRow
from revbifpn.memory.sources import Settings, Size, SubjectError, count_macs, count_parameters, find_subject, profile_subject
from revbifpn.memory.tables import (
    Table,
    comparison_table,
    fit_table,
    headline,
    report_tables,
    to_csv,
    to_markdown,
)

if TYPE_CHECKING:
    from rich.console import Console

_PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's arguments; a wrong one ends the process with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="revbifpn-memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="timm name, MMEngine config or module:callable")
    what = parser.add_argument_group("what to find out (default: where the memory of each model goes)")
    what.add_argument("--compare", nargs="+", metavar="MODEL", default=[], help="a table of models, in every mode")
    what.add_argument("--fit", metavar="SIZE", help="the largest batch and the largest image for a memory such as '24 GiB'")
    what.add_argument(
        "--paper",
        choices=("imagenet", "faster-rcnn", "mask-rcnn"),
        help="a memory figure of the RevBiFPN paper, its printed points beside these numbers",
    )
    step = parser.add_argument_group("the training step")
    step.add_argument("--batch", type=_positive, help="samples (default: the config's, or 16)")
    step.add_argument("--image-size", type=_image_size, metavar="SIDE|HxW", help="default: the model's own")
    step.add_argument("--mode", action="append", help="reversible, exact, stored or checkpointing (default: all there are)")
    step.add_argument(
        "--optimizer", default="auto", help="one of timm's, such as adamw or lamb; none; default: the config's, or sgd"
    )
    step.add_argument("--precision", choices=tuple(_PRECISIONS), default="float32", help="dtype of autocast")
    step.add_argument("--channels-last", action="store_true", help="images and weights in channels_last")
    step.add_argument("--device", choices=("cpu", "cuda"), help="what to predict for, or measure on (default: cuda if there)")
    step.add_argument("--measure", action="store_true", help="run the step for real and read the allocator's figures")
    out = parser.add_argument_group("output")
    for kind, text in {
        "json": "all numbers",
        "csv": "the comparison",
        "markdown": "the tables",
        "png": "a picture: the step, or the comparison",
        "html": "one self-contained page",
    }.items():
        out.add_argument(f"--{kind}", type=Path, metavar="FILE", help=text)
    out.add_argument(
        "--snapshot", type=Path, metavar="FILE", help="the CUDA allocator's record of a measured step, for PyTorch's viewer"
    )
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    args = parser.parse_args(arguments)
    if not (args.models or args.compare or args.paper):
        parser.error("name a model, or use --compare or --paper")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for what the user can mend."""
    args = parse_args(arguments)
    sys.path.insert(0, os.getcwd())  # module:callable means a module of the user's
    try:
        from rich.console import Console
    except ImportError:
        print("revbifpn-memory: this needs rich: pip install 'revbifpn[memory]'", file=sys.stderr)
        return 2
    console = Console(stderr=True)
    try:
        _check_outputs(args)
        Session(args, console).run()
    except (SubjectError, UnsupportedOperatorError, ValueError, ImportError, OSError) as error:
        if args.debug:
            traceback.print_exc()
        print(f"revbifpn-memory: {error}", file=sys.stderr)
        return 2
    return 0


class Session:
    """One run of the command line."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self.args = args
        self.console = console
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.settings = Settings(
            optimizer=None if args.optimizer == "none" else args.optimizer,
            device=device,
            method="measure" if args.measure else "predict",
            autocast=_PRECISIONS[args.precision],
            channels_last=args.channels_last,
            snapshot=args.snapshot,
        )
        self.tables: list[Table] = []
        self.reports: list[MemoryReport] = []
        self.rows: list[ComparisonRow] = []
        self.fits: list[Fit] = []
        self.quality = TOP1

    def run(self) -> None:
        """Work, show, write."""
        if self.args.fit:
            self._fit()
        elif self.args.paper:
            self._paper()
        elif self.args.compare:
            self._compare()
        else:
            self._profile()
        self._write()

    @contextmanager
    def _working(self) -> Iterator[Any]:
        """A line that says what is going on; libraries' warnings stay out of it."""
        with warnings.catch_warnings(), self.console.status("starting") as status:
            warnings.simplefilter("ignore")
            yield lambda text: status.update(text)

    def _profile(self) -> None:
        for spec in self.args.models:
            with self._working() as progress:
                progress(f"building {spec}")
                subject = find_subject(spec)
                image = self.args.image_size or subject.image
                batch = self.args.batch or subject.batch
                modes = _chosen(subject.modes, self.args.mode, spec)
                params, macs = count_parameters(subject, image), count_macs(subject, image)
                for mode in modes:
                    progress(f"{spec}, {mode}: a training step")
                    report = profile_subject(subject, mode, batch, image, self.settings)
                    self.reports.append(report)
                    self.rows.append(row_of(report, subject, params, macs))
            for report in self.reports[-len(modes) :]:
                print(f"\n{headline(report)}")
                for note in report.notes:
                    print(f"note: {note}")
                self._show(report_tables(report))
        if len(self.rows) > 1:
            self._show([comparison_table(self.rows)])

    def _compare(self) -> None:
        specs = [*self.args.models, *self.args.compare]
        with self._working() as progress:
            subjects = [find_subject(spec) for spec in specs]
            for subject in subjects:
                batch = self.args.batch or subject.batch
                pairs = compare([subject], self.args.mode, batch, self.args.image_size, self.settings, progress)
                for row, report in pairs:
                    self.rows.append(row)
                    self.reports.append(report)
        if not self.rows:
            raise SubjectError(f"none of these models has the mode {', '.join(self.args.mode)}")
        self._show([comparison_table(self.rows)])

    def _fit(self) -> None:
        memory = parse_bytes(self.args.fit)
        results: list[Fit | tuple[str, str, str]] = []
        failures: list[SubjectError] = []
        searches: list[tuple[str, Any, Any]]
        for spec in [*self.args.models, *self.args.compare]:
            with self._working() as progress:
                progress(f"building {spec}")
                subject = find_subject(spec)
                image = self.args.image_size or subject.image
                batch = self.args.batch or subject.batch
                for mode in _chosen(subject.modes, self.args.mode, spec):
                    searches = [(f"largest batch at {image[0]}x{image[1]}", largest_batch, image)]
                    if not subject.fixed_size:
                        searches.append((f"largest image with batch {batch}", largest_image, batch))
                    for text, search, given in searches:
                        progress(f"{spec}, {mode}: {text}")
                        try:
                            results.append(search(subject, mode, given, memory, self.settings))
                        except SubjectError as error:
                            failures.append(error)
                            results.append((spec, mode, str(error)))
        self.fits = [fit for fit in results if isinstance(fit, Fit)]
        if not self.fits:
            raise SubjectError("\n".join(dict.fromkeys(map(str, failures))))
        self._show([fit_table(results, memory)])
        if self.settings.device == "cuda" and self.settings.method == "predict":
            print("note: leave room for the CUDA context and cuDNN's workspaces (some hundred MB), which are not included")

    def _paper(self) -> None:
        figure = self.args.paper
        modes = self.args.mode or ["reversible", "stored"]
        # The paper measured on a GPU: cuDNN is no part of a prediction, and neither are the CPU's own workspaces.
        settings = replace(self.settings, device=self.args.device or "cuda")
        with self._working() as progress:
            subjects, batch = paper_subjects(figure)
            for row, report in compare(subjects, modes, self.args.batch or batch, self.args.image_size, settings, progress):
                # MMDetection logs all that a process took: the detectors' printed figures are whole steps.
                share = row.per_sample if figure == "imagenet" else report.peak / report.batch
                self.rows.append(replace(row, per_sample=share))
                self.reports.append(report)
        self.rows += paper_points(figure)
        self.quality = TOP1 if figure == "imagenet" else "box AP on COCO val2017"
        self._show([comparison_table(self.rows, self.quality)])
        if figure == "imagenet":
            print(f"\n{textwrap.fill(_headline_ratio(self.rows), 120)}")
        print(f"\n{textwrap.fill(PAPER_DIFFERENCES, 120)}")

    def _show(self, tables: Sequence[Table]) -> None:
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

    def _write(self) -> None:
        args, environment = self.args, describe_environment()
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

            if len(self.reports) == 1 and not args.paper:
                plot_report(self.reports[0], args.png)
            else:
                plot_comparison(self.rows, args.png, quality=self.quality)
        if args.html:
            from revbifpn.memory.page import write_page

            write_page(args.html, self.reports, self.rows, environment=environment, quality=self.quality)
        for path in (args.json, args.csv, args.markdown, args.png, args.html):
            if path:
                print(f"wrote {path}")


def _headline_ratio(rows: Sequence[ComparisonRow]) -> str:
    """The paper's headline, S6 against EfficientNet-B7, printed and predicted."""

    def find(name: str, mode: str, printed: bool) -> ComparisonRow:
        return next(r for r in rows if r.name.endswith(name) and r.mode == mode and (r.method == PRINTED) == printed)

    printed = find("efficientnet_b7", "stored", True).per_sample / find("revbifpn_s6", "reversible", True).per_sample
    s6, b7 = find("revbifpn_s6", "reversible", False), find("efficientnet_b7", "stored", False)
    text = (
        "EfficientNet-B7 at 600 against RevBiFPN-S6 at 352: 19.8 times the memory in the paper's text, "
        f"{printed:.1f} times by its printed points; here {b7.per_sample / s6.per_sample:.1f} times per sample"
    )
    if b7.peak and s6.peak:
        text += f", {b7.peak / s6.peak:.1f} times for the whole step with batch {s6.batch}"
    return text


def _chosen(modes: Sequence[str], wanted: Sequence[str] | None, spec: str) -> list[str]:
    unknown = [mode for mode in wanted or () if mode not in modes]
    if unknown:
        raise SubjectError(f"{spec} has no mode {unknown[0]!r}: choose from {', '.join(modes)}")
    return [mode for mode in modes if wanted is None or mode in wanted]


def _check_outputs(args: argparse.Namespace) -> None:
    """Before minutes of work: can the results be written?"""
    for path in (args.json, args.csv, args.markdown, args.png, args.html, args.snapshot):
        if path is not None and not path.resolve().parent.is_dir():
            raise SubjectError(f"{path} cannot be written: there is no folder {path.parent}")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 at least, got {text!r}")
    return int(text)


def _image_size(text: str) -> Size:
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"must be a side or HEIGHTxWIDTH in pixels, such as 224 or 800x1344, got {text!r}")
    return int(parts[0]), int(parts[-1])


if __name__ == "__main__":
    sys.exit(main())
