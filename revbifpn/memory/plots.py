"""Pictures of reports and comparisons, as PNG files; they need matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revbifpn.memory.report import CATEGORIES, MemoryReport, TimelinePoint
from revbifpn.memory.rows import ACCURACY, MEMORY, PRINTED, ComparisonRow, accuracies_in
from revbifpn.reversible.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Paul Tol's "bright" scheme, which colour-blind readers can tell apart.
CATEGORY_COLOURS = {
    "parameters": "#4477AA",
    "buffers": "#66CCEE",
    "optimizer state": "#AA3377",
    "gradients": "#CCBB44",
    "inputs": "#BBBBBB",
    "activations": "#228833",
    "temporaries": "#EE6677",
}
#: The same scheme, then two of his "muted" one; families take them in order, and again from the start.
FAMILY_COLOURS = ["#4477AA", "#EE6677", "#228833", "#CCBB44", "#AA3377", "#66CCEE", "#882255", "#999933"]

#: A row, and where it is drawn.
_Point = tuple[ComparisonRow, float, float]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_TEXT, _QUIET, _GRID, _CURVE = "#1c2430", "#5b6675", "#dde2e9", "#2f6299"
_BANDS = ("#f1f4f8", "#ffffff")


def plot_report(report: MemoryReport, path: Path) -> None:
    """Draw a step's timeline, and its peak by category.

    Args:
        path: of the PNG file; its folder is made if it is not there.

    Raises:
        ImportError: without matplotlib.
    """
    figure = _new_figure(11, 6.6)
    timeline, bars = figure.subplots(2, 1, height_ratios=(2.5, 1))
    image = "" if report.image is None else f", image {report.image[0]} x {report.image[1]}"
    name = f"{report.name} ({report.mode})" if report.mode else report.name
    # The empty second line keeps room for the text below.
    figure.suptitle(f"{name}: {format_bytes(report.peak)} at the peak of a training step\n", fontsize=14, color=_TEXT)
    figure.text(
        0.5,
        0.945,
        f"batch {report.batch}{image}, optimizer {report.optimizer}, {report.precision}, {report.method} for {report.device}; "
        f"{format_bytes(report.per_sample)} more with each sample",
        ha="center",
        va="top",
        fontsize=10,
        color=_QUIET,
    )
    _draw_timeline(timeline, report)
    _draw_categories(bars, report)
    _save(figure, path)


def plot_timelines(reports: Sequence[MemoryReport], path: Path, title: str) -> None:
    """Draw the timelines of several steps under each other, on one scale, with mode and peak over each.

    Args:
        path: of the PNG file; its folder is made if it is not there.

    Raises:
        ImportError: without matplotlib.
        ValueError: without reports.
    """
    if not reports:
        raise ValueError("there are no reports to plot")
    figure = _new_figure(11, 1 + 2.9 * len(reports))
    figure.suptitle(title, fontsize=14, color=_TEXT)
    panels = figure.subplots(len(reports), 1, squeeze=False)[:, 0]
    highest = max(report.peak_point.nbytes for report in reports)
    for axes, report in zip(panels, reports, strict=True):
        _draw_timeline(axes, report, round(1.2 * highest))  # the panels are low: the texts need a larger part of them
        heading = f"{report.mode or report.name}: {format_bytes(report.peak)} at the peak"
        axes.set_title(heading, loc="left", fontsize=11.5, color=_TEXT)
        axes.set_xlabel("operator of the step" if axes is panels[-1] else "")
    _save(figure, path)


def plot_comparison(
    rows: Sequence[ComparisonRow], path: Path, memory: str = "per_sample", title: str = "Training memory"
) -> None:
    """Draw training memory against multiply-accumulates, and against published accuracy.

    A model's label is its name less its family's; points that were printed in the paper are hollow. If rows have accuracies
    of several kinds, the kind that most of them have is drawn.

    Args:
        path: of the PNG file; its folder is made if it is not there.
        memory: the field of the rows to draw; one of :data:`.MEMORY`.

    Raises:
        ImportError: without matplotlib.
        ValueError: without rows.
    """
    if not rows:
        raise ValueError("there are no rows to plot")
    accuracy = next(iter(accuracies_in(rows)), "top1")
    figure = _new_figure(13, 6.2)
    left, right = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title, fontsize=14, color=_TEXT)
    families = list(dict.fromkeys(row.family for row in rows))
    modes = list(dict.fromkeys(row.mode for row in rows if row.method != PRINTED))
    style = _Style(families, modes)
    _handle_log(left, right)
    left.set_ylabel(MEMORY[memory], color=_QUIET)
    panels = ((left, _points(rows, "macs", memory)), (right, _points(rows, accuracy, memory)))
    for axes, points in panels:
        _draw_points(axes, points, style)
    left.set_xlabel("multiply-accumulates of one sample's forward pass", color=_QUIET)
    right.set_xlabel(f"published {ACCURACY[accuracy]}", color=_QUIET)
    figure.legend(
        handles=style.legend(any(row.method == PRINTED for row in rows)), loc="outside lower center", ncols=8, frameon=False
    )
    # Labels look for free places among what is drawn, so the layout has to be final.
    figure.draw_without_rendering()
    for axes, points in panels:
        _label_points(axes, points)
    figure.set_layout_engine("none")
    _save(figure, path)


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'revbifpn[memory]'") from error
    # Without pyplot: no window system is asked for, and nothing stays behind.
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _draw_timeline(axes: Axes, report: MemoryReport, highest: int = 0) -> None:
    """Draw a step's live bytes; the scale has room for the peak, and for ``highest`` bytes if they are more."""
    points, peak = report.timeline, report.peak_point
    numbers, sizes = [p.index for p in points], [p.nbytes for p in points]
    end = max(report.num_operators, 1)
    top = 1.3 * max(peak.nbytes, highest, 1)
    for number, (phase, start, stop) in enumerate(_phases(points, end)):
        axes.axvspan(start, stop, color=_BANDS[number % 2], zorder=0)
        narrow = (stop - start) / end < 0.012 * len(phase)
        if (stop - start) / end > 0.015:
            axes.text(
                (start + stop) / 2,
                0.975 * top,
                phase,
                ha="center",
                va="top",
                rotation=90 if narrow else 0,
                color=_QUIET,
                fontsize=10.5,
            )
    axes.fill_between(numbers, sizes, step="post", color=_CURVE, alpha=0.15, linewidth=0)
    axes.plot(numbers, sizes, drawstyle="steps-post", color=_CURVE, linewidth=1)
    axes.plot(peak.index, peak.nbytes, "o", markerfacecolor="white", markeredgecolor=_CURVE, markeredgewidth=2, markersize=7)
    place = peak.index / end
    axes.annotate(
        f"peak {format_bytes(report.peak)} at operator {peak.index}\n{peak.operator} in {peak.module or 'the step itself'}",
        (peak.index, peak.nbytes),
        xytext=(0 if 0.2 < place < 0.8 else 8 if place <= 0.2 else -8, 9),
        textcoords="offset points",
        ha="center" if 0.2 < place < 0.8 else "left" if place <= 0.2 else "right",
        va="bottom",
        fontsize=10,
        color=_TEXT,
    )
    axes.set(xlim=(0, end), ylim=(0, top), xlabel="operator of the step")
    axes.set_ylabel("live bytes", color=_QUIET)
    axes.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    _calm(axes, "y")


def _phases(points: Sequence[TimelinePoint], end: int) -> list[tuple[str, int, int]]:
    """Name, first operator, and first operator after it."""
    starts = [p for before, p in zip([None, *points], points, strict=False) if before is None or before.phase != p.phase]
    stops = [p.index for p in starts[1:]] + [end]
    return [(p.phase, p.index, stop) for p, stop in zip(starts, stops, strict=True)]


def _draw_categories(axes: Axes, report: MemoryReport) -> None:
    names = [name for name in CATEGORIES if report.categories[name]][::-1]
    sizes = [report.categories[name] for name in names]
    bars = axes.barh(names, sizes, color=[CATEGORY_COLOURS[name] for name in names], height=0.72)
    texts = [f"{format_bytes(size)}   {100 * size / max(report.peak, 1):.1f} %" for size in sizes]
    axes.bar_label(bars, texts, padding=5, color=_TEXT, fontsize=9.5)
    axes.set(xlim=(0, 1.18 * max(sizes, default=1)), xlabel="what is alive at the peak")
    axes.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
    _calm(axes, "x")


def _calm(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color=_GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(colors=_QUIET, length=0, labelsize=9.5)
    axes.xaxis.label.set_color(_QUIET)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


class _Style:
    """Colours by family, markers by mode."""

    def __init__(self, families: Sequence[str], modes: Sequence[str]) -> None:
        self.families, self.modes = families, modes

    def colour(self, family: str) -> str:
        return FAMILY_COLOURS[self.families.index(family) % len(FAMILY_COLOURS)]

    def marker(self, mode: str) -> str:
        return _MARKERS[self.modes.index(mode) % len(_MARKERS)] if mode in self.modes else _MARKERS[0]

    def size(self, mode: str) -> float:
        """Points of equal figures lie on each other: the first mode's are large enough to show behind the next."""
        return 10.0 if [mode] == list(self.modes[:1]) else 6.5

    def legend(self, printed: bool) -> list[Any]:
        from matplotlib.lines import Line2D

        def entry(marker: str, label: str, **look: Any) -> Any:
            return Line2D([], [], linestyle="none", marker=marker, markersize=8, label=label, **look)

        entries = [entry("o", family, color=self.colour(family)) for family in self.families]
        entries += [entry(self.marker(mode), mode or "one mode", color=_QUIET) for mode in self.modes]
        if printed:
            entries.append(entry("o", PRINTED, markerfacecolor="white", markeredgecolor=_QUIET))
        return entries


def _handle_log(left: Axes, right: Axes) -> None:
    left.set_xscale("log")
    left.set_yscale("log")
    for axis, write in ((left.xaxis, _count), (left.yaxis, format_bytes)):
        _plain_log_ticks(axis, write)
    for axes in (left, right):
        _calm(axes, "both")


def _plain_log_ticks(axis: Any, write: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def _count(number: float) -> str:
    """``2e9`` -> ``"2 G"``."""
    return format_bytes(number).removesuffix("B").strip()


def _points(rows: Iterable[ComparisonRow], across: str, memory: str) -> list[_Point]:
    """Return the rows that have both fields, with their values; zero has no place on a logarithmic axis."""
    values = ((row, getattr(row, across), getattr(row, memory)) for row in rows)
    return [(row, x, y) for row, x, y in values if x is not None and y and (across != "macs" or x > 0)]


def _draw_points(axes: Axes, points: Sequence[_Point], style: _Style) -> None:
    if not points:
        axes.text(0.5, 0.5, "no figures", transform=axes.transAxes, ha="center", color=_QUIET)
        return
    lines: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row, x, y in points:
        lines.setdefault((row.family, row.mode, row.method), []).append((x, y))
    for (family, mode, method), line in lines.items():
        printed = method == PRINTED
        colour = style.colour(family)
        axes.plot(
            *zip(*sorted(line), strict=True),
            color=colour,
            linewidth=1,
            alpha=0.5,
            linestyle=":" if printed else "-",
            zorder=2,
        )
        axes.plot(
            *zip(*line, strict=True),
            linestyle="none",
            marker=style.marker(mode),
            markersize=6.5 if printed else style.size(mode),
            markerfacecolor="white" if printed else colour,
            markeredgecolor=colour if printed else "white",
            markeredgewidth=1.2 if printed else 0.8,
            zorder=3,
        )
    axes.margins(0.09, 0.09)


def _label_points(axes: Axes, points: Sequence[_Point]) -> None:
    """Each model's name once, beside the first of its points that has room; none where no point has."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    places = [(row, axes.transData.transform((x, y))) for row, x, y in points]
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for _, (x, y) in places]
    frame = axes.get_window_extent(renderer)
    done: set[str] = set()
    # The lowest point of a model first: below it there is room, above it are its other modes.
    for row, (x, y) in sorted(places, key=lambda p: (p[0].method == PRINTED, p[1][1])):
        if row.name in done:
            continue
        text = axes.annotate(
            _short_name(row), (x, y), xycoords="figure pixels", fontsize=9, color=_TEXT, va="center", ha="center"
        )
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        size = text.get_window_extent(renderer)
        width, height = size.width, size.height
        for dx, dy in ((1, 0), (0, -1), (-1, 0), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
            cx, cy = x + dx * (width / 2 + 9), y + dy * (height / 2 + 8)
            box = Bbox.from_extents(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                text.set_position((cx, cy))
                taken.append(box)
                done.add(row.name)
                break
        else:
            text.remove()


def _short_name(row: ComparisonRow) -> str:
    """``"tf_efficientnet_b4"`` of the family efficientnet -> ``"b4"``; the colour tells the rest."""
    for prefix in (f"{row.family}_", f"tf_{row.family}_"):
        if row.name.startswith(prefix):
            return row.name.removeprefix(prefix)
    return row.name
