"""The memory figures of the RevBiFPN paper: what it printed, beside what the profiler says.

    python -m benchmarks.paper_figures imagenet [--png FILE] [--html FILE] [--json FILE] [--markdown FILE] [--csv FILE]
    python -m benchmarks.paper_figures faster-rcnn      (this and the next need the detection stack)
    python -m benchmarks.paper_figures mask-rcnn

``--results FILE`` keeps the rows of each figure, and not the steps behind them, for :mod:`benchmarks.readme`.

Steps are predicted for a GPU unless --device or --measure says otherwise, with SGD and float32. The paper's points stand
beside the memory of a whole step divided by its samples; what its gigabytes contain is not printed.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.common import environment, update_json
from revbifpn.memory import format_bytes
from revbifpn.memory.commands import add_step_options, run_command, settings_of, working
from revbifpn.memory.compare import profile_modes
from revbifpn.memory.configs import ConfigSubject, read_config
from revbifpn.memory.output import Results, add_output_options, check_outputs
from revbifpn.memory.rows import ACCURACY, MEMORY, PRINTED, ComparisonRow
from revbifpn.memory.sources import TimmSubject
from revbifpn.memory.subject import Size, Subject, SubjectError
from revbifpn.memory.tables import Table

CONFIGS = Path(__file__).parents[1] / "configs" / "mask_rcnn"


@dataclass(frozen=True)
class PrintedPoint:
    """One model in a figure or a table of the paper.

    Attributes:
        gigabytes: training memory as it is printed, for as many samples as :attr:`PrintedFigure.samples` says.
        accuracy: as it is printed, of the kind that :attr:`PrintedFigure.accuracy` says.
        gmacs: billions of multiply-accumulates; None where they are not printed.
        approximate: whether the point was read off a plot.
    """

    name: str
    gigabytes: float
    accuracy: float
    gmacs: float | None = None
    approximate: bool = False


@dataclass(frozen=True)
class PrintedFigure:
    """A figure or a table of the paper (Chiley et al., MLSys 2023, arXiv 2206.14098).

    Attributes:
        samples: how many samples the memory of a point is for.
        accuracy: the field of a :class:`.ComparisonRow` that the points' accuracy belongs to.
        modes: in which the models are profiled here, where they have them.
        batch: with how many samples the models are profiled here; the paper's batch is not printed, but for Mask R-CNN.
    """

    points: tuple[PrintedPoint, ...]
    samples: int
    accuracy: str
    batch: int
    modes: tuple[str, ...] = ("reversible", "stored")


FIGURES = {
    "imagenet": PrintedFigure(  # the figure "MACs against training memory", one GPU
        (
            PrintedPoint("revbifpn_s0", 0.01, 72.8, 0.308, True),
            PrintedPoint("revbifpn_s1", 0.02, 75.9, 0.617, True),
            PrintedPoint("revbifpn_s2", 0.03, 79.0, 1.37, True),
            PrintedPoint("revbifpn_s3", 0.045, 81.1, 3.33, True),
            PrintedPoint("revbifpn_s4", 0.11, 83.0, 10.6),
            PrintedPoint("revbifpn_s5", 0.23, 83.7, 21.8),
            PrintedPoint("revbifpn_s6", 0.25, 84.2, 38.1),
            PrintedPoint("efficientnet_b5", 1.44, 83.6, 10.0),
            PrintedPoint("efficientnet_b6", 2.61, 84.0, 19.0),
            PrintedPoint("efficientnet_b7", 5.05, 84.3, 37.0),
        ),
        samples=1,
        accuracy="top1",
        batch=16,
    ),
    "faster-rcnn": PrintedFigure(  # Faster R-CNN 1x on COCO, images of 1333x800
        (
            PrintedPoint("revbifpn_s0", 0.84, 31.4, None, True),
            PrintedPoint("revbifpn_s1", 0.89, 32.0, None, True),
            PrintedPoint("revbifpn_s2", 1.07, 36.3, None, True),
            PrintedPoint("revbifpn_s3", 1.31, 38.7, 180.99),
            PrintedPoint("revbifpn_s4", 2.02, 40.3, None, True),
            PrintedPoint("revbifpn_s5", 2.75, 41.3, 328.91),
            PrintedPoint("revbifpn_s6", 3.69, 42.2, 465.43),
            PrintedPoint("hrnetv2p_w18", 3.13, 36.2, 196.18),
            PrintedPoint("hrnetv2p_w32", 4.31, 39.6, 298.96),
            PrintedPoint("hrnetv2p_w48", 5.82, 41.3, 481.92),
            PrintedPoint("resnet101_fpn", 2.72, 39.2, 296.58),
        ),
        samples=1,
        accuracy="box_ap",
        batch=2,
        modes=("reversible", "stored", "checkpointing"),
    ),
    "mask-rcnn": PrintedFigure(  # Mask R-CNN 1x on COCO, two images of 1333x800
        (
            PrintedPoint("revbifpn_s0", 2.0, 31.4, 188.2),
            PrintedPoint("revbifpn_s1", 2.4, 34.0, 193.7),
            PrintedPoint("revbifpn_s2", 2.6, 37.1, 210.5),
            PrintedPoint("revbifpn_s3", 2.6, 39.4, 232.9),
            PrintedPoint("revbifpn_s4", 4.1, 41.5, 304.1),
            PrintedPoint("revbifpn_s5", 5.5, 42.2, 382.0),
            PrintedPoint("revbifpn_s6", 7.4, 43.3, 518.5),
            PrintedPoint("hrnetv2p_w18", 6.7, 37.1, 249.3),
            PrintedPoint("hrnetv2p_w32", 9.0, 40.9, 352.0),
        ),
        samples=2,
        accuracy="box_ap",
        batch=2,
        modes=("reversible", "stored", "checkpointing"),
    ),
}

#: What has to be known to read the figures side by side.
CAVEAT = (
    "The paper prints neither what its gigabytes contain nor versions and precision of its runs, nor, for ImageNet and Faster "
    "R-CNN, their batch. The figures of this project are live tensors, predicted for a GPU without cuDNN's workspaces, "
    "the CUDA context, and blocks that the allocator keeps. 'Memory per sample' is what grows with the batch; 'whole step per "
    "sample' is everything, weights and optimizer state too, divided by the batch."
)


def printed_rows(figure: PrintedFigure) -> list[ComparisonRow]:
    """The paper's points as rows; their memory for one sample stands beside that of a whole step here."""
    return [
        ComparisonRow(
            name=point.name,
            family=point.name.split("_")[0],
            mode="reversible" if point.name.startswith("revbifpn") else "stored",
            method=PRINTED,
            macs=None if point.gmacs is None else point.gmacs * 1e9,
            step_per_sample=point.gigabytes * 1e9 / figure.samples,
            **{figure.accuracy: point.accuracy},  # type: ignore[arg-type]
        )
        for point in figure.points
    ]


class CheckpointableDetector(ConfigSubject):
    """A detector whose backbone has MMDetection's ``with_cp``, which is its mode ``"checkpointing"``."""

    modes = ("stored", "checkpointing")

    def model(self, mode: str, image: Size, batch: int | None = None) -> nn.Module:
        self.check_mode(mode)
        with_cp = mode == "checkpointing"
        if with_cp != bool(self.cfg.model.backbone.get("with_cp")):
            self.cfg.model.backbone.with_cp = with_cp
            self.release()
        return self._kept(image)


def makers_of_subjects(name: str) -> dict[str, Callable[[], Subject]]:
    """The models that are profiled for a figure, by name, each as a function that makes it.

    Args:
        name: of the figure: ``"imagenet"``, ``"faster-rcnn"`` or ``"mask-rcnn"``.
    """
    if name == "imagenet":
        names = [f"revbifpn_s{i}" for i in range(7)] + [f"tf_efficientnet_b{i}" for i in range(8)]
        return {model: lambda model=model: TimmSubject(model) for model in names}  # type: ignore[misc]
    with_masks = name == "mask-rcnn"
    hrnet = "mmdet::hrnet/mask-rcnn_hrnetv2p-w{}-1x_coco.py"
    paths = {f"revbifpn_s{i}": str(CONFIGS / f"mask-rcnn_revbifpn-s{i}_hrfpn_1x_coco.py") for i in range(7)}
    paths |= {f"hrnetv2p_w{width}": hrnet.format(width) for width in (18, 32)}
    changes: dict[str, dict[str, Any]] = {}
    if not with_masks:
        wide = [48, 96, 192, 384]
        paths |= {"hrnetv2p_w48": hrnet.format(32), "resnet101_fpn": "mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py"}
        changes["hrnetv2p_w48"] = {f"model.backbone.extra.stage{i}.num_channels": tuple(wide[:i]) for i in (2, 3, 4)}
        changes["hrnetv2p_w48"]["model.neck.in_channels"] = wide

    def detector(model: str) -> Subject:
        cfg = read_config(paths[model])
        cfg.merge_from_dict(changes.get(model, {}))
        if not with_masks:
            remove_masks(cfg.model)
        subject = (ConfigSubject if model.startswith("revbifpn_") else CheckpointableDetector)(cfg, model)
        subject.family = model.split("_")[0]
        subject.box_ap = next((point.accuracy for point in FIGURES[name].points if point.name == model), None)
        return subject

    return {model: lambda model=model: detector(model) for model in paths}  # type: ignore[misc]


def remove_masks(model: Any) -> None:
    """Turn the config of a Mask R-CNN into that of the Faster R-CNN that it is without its mask branch."""
    model.type = "FasterRCNN"
    for key in ("mask_roi_extractor", "mask_head"):
        model.roi_head.pop(key, None)


def paper_table(figure: PrintedFigure, rows: Sequence[ComparisonRow]) -> Table:
    """One line for each model: what was profiled in each mode, and what is printed.

    Args:
        rows: what was profiled.
    """
    names, modes = (list(dict.fromkeys(getattr(row, field) for row in rows)) for field in ("name", "mode"))
    by_place = {(row.name, row.mode): row for row in rows}
    head = ["model, image", "GMACs", f"published {ACCURACY[figure.accuracy]}"]
    head += [f"{MEMORY[memory]}, {mode}" for memory in MEMORY for mode in modes] + ["printed"]

    def size(name: str, mode: str, memory: str) -> str:
        row = by_place.get((name, mode))
        return "-" if row is None else format_bytes(getattr(row, memory))

    lines = []
    for name in names:
        row = next(row for row in rows if row.name == name)
        height, width = row.image or (0, 0)
        accuracy = getattr(row, figure.accuracy)
        point = next((point for point in figure.points if point.name == name.removeprefix("tf_")), None)
        lines.append(
            [
                f"{name}, {height}x{width}",
                f"{(row.macs or 0) / 1e9:.3g}",
                "-" if accuracy is None else f"{accuracy:.1f}",
                *(size(name, mode, memory) for memory in MEMORY for mode in modes),
                "-" if point is None else "~" * point.approximate + format_bytes(point.gigabytes * 1e9 / figure.samples),
            ]
        )
    return (f"Training memory of one sample, batch {rows[0].batch}", head, lines)


def headline_ratio(rows: Sequence[ComparisonRow]) -> str | None:
    """The paper's headline, EfficientNet-B7 against RevBiFPN-S6, by its printed points and by rows of this project.

    Args:
        rows: of the ImageNet figure, printed ones and others.

    Returns:
        A sentence, or None if one of the two models was not profiled.
    """

    def find(name: str, mode: str, printed: bool) -> ComparisonRow | None:
        found = (row for row in rows if row.name.endswith(name) and row.mode == mode and (row.method == PRINTED) == printed)
        return next(found, None)

    def ratio(field: str, printed: bool = False) -> float:
        large, small = find("efficientnet_b7", "stored", printed), find("revbifpn_s6", "reversible", printed)
        return float(getattr(large, field) / getattr(small, field))

    s6, b7 = find("revbifpn_s6", "reversible", False), find("efficientnet_b7", "stored", False)
    if s6 is None or b7 is None:
        return None
    return (
        "EfficientNet-B7 takes 19.8 times the memory of RevBiFPN-S6 by the paper's text, and "
        f"{ratio('step_per_sample', True):.1f} times by its printed points. Here a whole step with batch {s6.batch} takes "
        f"{ratio('step_per_sample'):.1f} times the memory, and what grows with each sample is {ratio('per_sample'):.1f} "
        "times as large."
    )


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper_figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=tuple(FIGURES))
    parser.add_argument("--models", nargs="+", metavar="NAME", help="some of the figure's models (default: all)")
    add_step_options(parser, defaults="16 for imagenet, 2 for detectors", device="cuda")
    add_output_options(parser)
    parser.add_argument("--results", type=Path, metavar="FILE", help="rows of this figure as JSON; those of others stay in it")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    """Profile, show, write."""
    check_outputs(args)
    figure, makers = FIGURES[args.figure], makers_of_subjects(args.figure)
    for name in args.models or ():
        if name not in makers:
            raise SubjectError(f"{name!r} is not in this figure: choose from {', '.join(makers)}")
    settings = settings_of(args, "cuda")
    results = Results()
    with working() as progress:
        for name in args.models or makers:
            subject = makers[name]()
            modes = [mode for mode in subject.modes if mode in (args.mode or figure.modes)]
            if not modes:
                continue
            batch, image = args.batch or figure.batch, args.image_size or subject.image
            for row, report in profile_modes(subject, modes, batch, image, settings, progress):
                results.rows.append(row)
                results.reports.append(report)
    if not results.rows:
        raise SubjectError(f"none of these models has the mode {' or '.join(args.mode)}")
    results.show([paper_table(figure, results.rows)])
    results.rows += printed_rows(figure)
    ratio = headline_ratio(results.rows) if args.figure == "imagenet" else None
    for text in filter(None, (ratio, CAVEAT)):
        print(f"\n{textwrap.fill(text, 120)}")
    results.write(args, memory="step_per_sample")
    if args.results:
        rows = [asdict(row) for row in results.rows if row.method != PRINTED]
        update_json(args.results, {args.figure: {"environment": environment(), "rows": rows}})


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    return run_command("paper_figures", lambda: run(args), args.debug)


if __name__ == "__main__":
    sys.exit(main())
