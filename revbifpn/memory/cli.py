"""``revbifpn-memory``: how much memory training takes, where it goes, and what fits.

    revbifpn-memory revbifpn_s0 --batch 64                          one model in every mode that it has
    revbifpn-memory revbifpn_s0:exact                               in one mode
    revbifpn-memory configs/demo/mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py --measure
    revbifpn-memory --compare revbifpn_s0 revbifpn_s3 efficientnet_b3 hrnet_w18 --html memory.html
    revbifpn-memory --fit "24 GiB" revbifpn_s6 --device cuda
    revbifpn-memory revbifpn_s0 --frames 32                         a classifier of clips of 32 frames

A model is a timm name, an MMEngine config, or module:callable. After a further colon it may name one of its modes:
reversible, exact and stored, or, for other models, stored and checkpointing. Figures are predicted on fake tensors
unless --measure is given; MB and GB are powers of ten.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from revbifpn.memory.commands import add_step_options, positive, run_command, settings_of, working
from revbifpn.memory.compare import Progress, profile_modes
from revbifpn.memory.fake import UnsupportedOperatorError
from revbifpn.memory.fit import Fit, largest_batch, largest_image
from revbifpn.memory.output import Results, add_output_options, check_outputs
from revbifpn.memory.sources import subject_and_mode
from revbifpn.memory.subject import Subject, SubjectError
from revbifpn.memory.tables import comparison_table, fit_table, headline, report_tables
from revbifpn.models.clips import TEMPORAL
from revbifpn.reversible.units import parse_bytes

_NAME = "revbifpn-memory"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line's arguments; a wrong one ends the process with exit code 2."""
    parser = argparse.ArgumentParser(prog=_NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="timm name, MMEngine config or module:callable; then :MODE")
    what = parser.add_argument_group("what to find out (default: where the memory of each model goes)")
    what.add_argument(
        "--compare", nargs="+", metavar="MODEL", default=[], help="a table of models, in every mode or the named one"
    )
    what.add_argument("--fit", metavar="SIZE", help="the largest batch and the largest image for a memory such as '24 GiB'")
    clips = parser.add_argument_group("clips (a sample is then a clip; 2 in a step by default)")
    clips.add_argument("--frames", type=positive, metavar="T", help="frames of a clip; the models become classifiers of clips")
    clips.add_argument("--temporal", choices=TEMPORAL, default="mean", help="their temporal head (default: %(default)s)")
    add_step_options(parser)
    add_output_options(parser)
    args = parser.parse_args(arguments)
    if not (args.models or args.compare):
        parser.error("name a model, or use --compare")
    if args.fit and (args.csv or args.png or args.html):
        parser.error("--fit makes a table and nothing to draw: use --json or --markdown")
    if args.temporal != "mean" and args.frames is None:
        parser.error("--temporal is for clips: give --frames")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for what the user can mend."""
    args = parse_args(arguments)
    return run_command(_NAME, lambda: _Session(args).run(), args.debug)


class _Session:
    """One run of the command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.settings = settings_of(args, "cuda" if torch.cuda.is_available() else "cpu")
        self.results = Results()
        self.failures: list[str] = []

    def run(self) -> None:
        """Work, show, write.

        Raises:
            ValueError: for what could not be profiled, after everything else was shown and written.
        """
        check_outputs(self.args)
        memory = parse_bytes(self.args.fit) if self.args.fit else 0
        with working() as progress:
            chosen = self._chosen(progress)
        if self.args.snapshot and sum(len(modes) for _, modes in chosen) > 1:
            raise SubjectError("--snapshot records one step: name one model in one mode, such as revbifpn_s0:stored")
        if memory:
            self._fit(chosen, memory)
        else:
            self._profile(chosen)
        if self.results.tables:
            self.results.write(self.args)
        if self.failures:
            raise SubjectError("\n".join(dict.fromkeys(self.failures)))

    def _chosen(self, progress: Progress) -> list[tuple[Subject, list[str]]]:
        """The models that were named, and the modes of each that were named and that --mode lets pass."""
        specs, wanted = [*self.args.models, *self.args.compare], self.args.mode
        chosen, left_out = [], []
        for spec in specs:
            progress(f"building {spec}")
            subject, named = subject_and_mode(spec, self.args.frames, self.args.temporal)
            candidates = [named] if named else subject.modes
            modes = [mode for mode in candidates if wanted is None or mode in wanted]
            if modes:
                chosen.append((subject, modes))
            else:
                left_out.append(f"{spec} is left out by --mode: it would run in {', '.join(candidates)}")
            if len(specs) > 1:
                subject.release()  # one model at a time is in memory
        if not chosen:
            raise SubjectError("; ".join(left_out))
        for text in left_out:
            print(f"note: {text}", file=sys.stderr)
        return chosen

    def _profile(self, chosen: list[tuple[Subject, list[str]]]) -> None:
        for subject, modes in chosen:
            batch, image = self.args.batch or subject.batch, self.args.image_size or subject.image
            reports = []
            try:
                with working() as progress:
                    for row, report in profile_modes(subject, modes, batch, image, self.settings, progress):
                        self.results.rows.append(row)
                        reports.append(report)
            except (SubjectError, UnsupportedOperatorError) as error:
                self.failures.append(str(error))
            self.results.reports += reports
            for report in reports if not self.args.compare else []:
                print(f"\n{headline(report)}")
                for note in report.notes:
                    print(f"note: {note}")
                self.results.show(report_tables(report))
        if len(self.results.rows) > (0 if self.args.compare else 1):
            self.results.show([comparison_table(self.results.rows)])

    def _fit(self, chosen: list[tuple[Subject, list[str]]], memory: int) -> None:
        found: list[Fit | tuple[str, str, str]] = []
        failures = []
        with working() as progress:
            for subject, modes in chosen:
                batch, image = self.args.batch or subject.batch, self.args.image_size or subject.image
                searches: list[tuple[str, Any, Any]] = [(f"largest batch at {image[0]}x{image[1]}", largest_batch, image)]
                if not subject.fixed_size:
                    searches.append((f"largest image with batch {batch}", largest_image, batch))
                for mode in modes:
                    for text, search, given in searches:
                        progress(f"{subject.name}, {mode}: {text}")
                        try:
                            found.append(search(subject, mode, given, memory, self.settings))
                        except SubjectError as error:
                            failures.append(str(error))
                            found.append((subject.name, mode, str(error)))
                subject.release()
        self.results.fits = [fit for fit in found if isinstance(fit, Fit)]
        if not self.results.fits:
            self.failures += failures
            return
        self.results.show([fit_table(found, memory)])
        if (self.settings.device, self.settings.method) == ("cuda", "predict"):
            print("note: leave room for the CUDA context and cuDNN's workspaces (some hundred MB), which are not included")


if __name__ == "__main__":
    sys.exit(main())
