"""What the benchmarks' pictures share: figures without a window system, and labels beside their points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

TEXT, QUIET, GRID = "#1c2430", "#5b6675", "#dde2e9"


class Label(NamedTuple):
    """Text beside a point; sizes in points."""

    x: float
    y: float
    text: str
    colour: str
    size: float


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'revbifpn[memory]'") from error
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG file, and its folder where there is none; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def plain_numbers(axes: Axes) -> None:
    """Ticks that read 20 and 50 instead of powers of ten, on a quiet grid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.grid(color=GRID, linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=QUIET)


#: Where a label may stand: a direction, and the side of the text that faces the point.
_PLACES = (
    (1, 0, "left", "center"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
    (-1, 0, "right", "center"),
    (0.7, 0.7, "left", "bottom"),
    (0.7, -0.7, "left", "top"),
    (-0.7, 0.7, "right", "bottom"),
    (-0.7, -0.7, "right", "top"),
)
_NEAR, *_FAR = (8, 16, 26, 38)


def place_all_labels(figure: Figure, labels: Sequence[Sequence[Label]]) -> None:
    """Write each panel's labels beside their points, and fix the layout, which has to be final for that."""
    figure.draw_without_rendering()
    for axes, chosen in zip(figure.axes, labels, strict=True):
        _place_labels(axes, chosen)
    figure.set_layout_engine("none")


def _place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Each label goes to the nearest place around its point where it covers least."""
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    lines, points = _drawn_points(axes)
    taken: list[Bbox] = []

    def conflicts(box: Bbox) -> int:
        outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
        on_lines, on_points = (
            int(((drawn > box.padded(pad).min) & (drawn < box.padded(pad).max)).all(axis=1).sum())
            for drawn, pad in ((lines, 4), (points, 7))
        )
        return 100 * (outside + on_points + sum(box.padded(6).overlaps(other) for other in taken)) + on_lines

    for label in labels:
        best: tuple[int, Annotation, Bbox] | None = None
        for distance, place in product((_NEAR, *_FAR), _PLACES):
            text = _annotate(axes, label, distance, place)
            box = text.get_window_extent(renderer)
            count = conflicts(box)
            if best is not None and best[0] <= count:
                text.remove()
                continue
            if best is not None:
                best[1].remove()
            best = (count, text, box)
            if count == 0:
                break
        assert best is not None
        taken.append(best[2])


def _drawn_points(axes: Axes) -> tuple[Any, Any]:
    """Points on all lines, and under all markers, in pixels, shape (number, 2)."""
    import numpy as np

    on_lines, markers = [np.empty((0, 2))], []
    for line in axes.get_lines():
        corners = axes.transData.transform(line.get_xydata())  # type: ignore[arg-type]
        markers.append(corners)
        if line.get_linestyle() != "None":
            steps = np.linspace(0, 1, 40)[:, None]
            on_lines += [start + steps * (end - start) for start, end in pairwise(corners)]
    return np.concatenate(on_lines), np.concatenate(markers)


def _annotate(axes: Axes, label: Label, distance: float, place: tuple[float, float, str, str]) -> Annotation:
    dx, dy, horizontal, vertical = place
    return axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(distance * dx, distance * dy),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=label.size,
        color=label.colour,
        zorder=4,
        arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.6} if distance > _NEAR else None,
    )
