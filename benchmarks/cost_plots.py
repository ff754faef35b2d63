"""Pictures of :mod:`benchmarks.training_cost`'s results: memory against time, and memory's growth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import describe
from benchmarks.cost_tables import Cost, costs_of, front_of
from benchmarks.growth import NAMES
from benchmarks.networks import BUDGETS, variant_of
from benchmarks.pictures import QUIET, TEXT, Label, new_figure, place_all_labels, plain_numbers, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: After Paul Tol's "muted" scheme, whose colours colour-blind readers can tell apart.
OWN, YARDSTICK = "#0b3c8c", "#1c2430"
COLOURS = ("#CC6677", "#117733", "#AA4499", "#8A8A2E", "#2E9688", "#882255")
GROWTH_COLOURS = {
    "plain": YARDSTICK,
    "plain checkpointing": "#B8860B",
    "stored": "#228833",
    "budget 0.25": "#AA3377",
    "reversible": OWN,
}
#: The budgets' path, from nothing kept to all.
PATH = ("reversible", *BUDGETS, "stored")


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the results have; returns the files."""
    groups = {name: group for name, group in results.get("cost", {}).items() if front_of(costs_of(group))}
    drawn = []
    for file, chosen in (("training_cost.png", ("s0",)), ("training_cost_equal_accuracy.png", ("s2", "s3"))):
        if panels := [groups[name] for name in chosen if name in groups]:
            drawn.append(draw_costs(panels, folder / file))
    if "growth" in results:
        drawn.append(draw_growth(results["growth"], folder / "memory_growth.png"))
    return drawn


def draw_costs(groups: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """A panel for each group: activations of a sample against the time of a step."""
    figure = new_figure(8.6 if len(groups) == 1 else 11, 5.6)
    figure.suptitle("Memory and time of a training step: better is left and down", fontsize=13, color=TEXT)
    where = describe(groups[0]["time"]["environment"])
    figure.supxlabel(f"In parentheses: published top-1. Hollow: checkpointed.\n{where}", fontsize=8, color=QUIET)
    labels = []
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        labels.append(_draw_points(axes, costs_of(group)))
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("activations, MB a sample", color=QUIET)
        axes.set_ylabel("training step, ms a sample", color=QUIET)
        axes.margins(0.16, 0.12)
        plain_numbers(axes)
    place_all_labels(figure, labels)
    return save(figure, path)


def _draw_points(axes: Axes, costs: Sequence[Cost]) -> list[Label]:
    """Draw a group; returns what is to be written beside the points."""
    known = {(c.name, c.mode, c.channels_last): c for c in costs if c.cpu is not None and c.per_sample is not None}
    labels: list[Label] = []

    def draw(chosen: Iterable[Cost], colour: str, marker: str, line: str, names: Mapping[str, str], size: float = 9) -> None:
        points = [((c.cpu or 0) / 1e6, 1000 * (c.per_sample or 0), c) for c in chosen]
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], line, color=colour, linewidth=1.3, zorder=2)
        for x, y, cost in points:
            face = "white" if "checkpointing" in cost.mode else colour
            axes.plot([x], [y], marker, color=colour, markerfacecolor=face, markersize=7, zorder=3)
            if name := names.get(str(cost.mode)):
                labels.append(Label(x, y, name, colour, size))

    own = [cost for cost in known.values() if variant_of(cost.name)]
    for name in dict.fromkeys(cost.name for cost in own):
        short = name.removeprefix("revbifpn_").upper()
        accuracy = f" ({own[0].top1})"
        path = [known[name, mode, False] for mode in PATH if (name, mode, False) in known]
        names = {"reversible": f"{short}{accuracy}: budget 0", "stored": "1: stored"}
        draw(path, OWN, "o", "-", names | {mode: str(budget) for mode, budget in BUDGETS.items()}, 10)
        draw([c for c in own if c.mode == "exact"], OWN, "D", "", {"exact": "exact"})
        draw([c for c in own if c.mode == "plain" and not c.channels_last], YARDSTICK, "s", "", {"plain": f"plain {short}"})
        draw([c for c in own if c.mode == "plain" and c.channels_last], YARDSTICK, "s", "", {"plain": "plain, channels_last"})
        stages = [c for c in own if c.mode == "plain checkpointing"]
        draw(stages, YARDSTICK, "s", "", {"plain checkpointing": "plain, checkpointed"})
    others = dict.fromkeys(cost.name for cost in known.values() if not variant_of(cost.name))
    for name, colour in zip(others, COLOURS, strict=False):
        chosen = [cost for cost in known.values() if cost.name == name]
        accuracy = f" ({chosen[0].top1})" if chosen[0].top1 else ""
        draw(chosen, colour, "o", "-", {"stored": f"{name}{accuracy}"})
    return labels


def draw_growth(growth: Mapping[str, Any], path: Path) -> Path:
    """A panel for each sweep; dashed: the growth that is expected, drawn through the largest value."""
    sweeps = growth["sweeps"]
    figure = new_figure(11, 4.6)
    figure.suptitle("RevBiFPN-S0: training memory against batch, image and depth (dashed: expected)", fontsize=13, color=TEXT)
    figure.supxlabel(describe(growth["environment"]), fontsize=8, color=QUIET)
    labels = []
    for axes, sweep in zip(figure.subplots(1, len(sweeps), squeeze=False)[0], sweeps, strict=True):
        values, line_labels = sweep["values"], []
        for mode, peaks in sweep["bytes"].items():
            colour = GROWTH_COLOURS[mode]
            axes.plot(values, [peak / 1e6 for peak in peaks], "o-", color=colour, linewidth=1.5, markersize=5, zorder=3)
            axes.plot(values, [value / 1e6 for value in _expected(sweep, mode)], "--", color=colour, alpha=0.6, zorder=2)
            line_labels.append(
                Label(values[-1], peaks[-1] / 1e6, mode.replace("plain checkpointing", "checkpointed"), colour, 9.5)
            )
        labels.append(line_labels)
        axes.set(xscale="linear" if sweep["quantity"] == "stages" else "log", yscale="log")
        axes.set_xlabel(NAMES[sweep["quantity"]], color=QUIET)
        axes.margins(0.08, 0.08)
        low, high = axes.transData.transform([(value, 1) for value in axes.get_xlim()])[:, 0]
        axes.set_xlim(right=axes.transData.inverted().transform((high + 0.42 * (high - low), 0))[0])  # room for labels
        plain_numbers(axes)
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("activations at the peak, MB", color=QUIET)
    place_all_labels(figure, labels)
    return save(figure, path)


def _expected(sweep: Mapping[str, Any], mode: str) -> list[float]:
    values, last = sweep["values"], sweep["bytes"][mode][-1]
    if sweep["quantity"] == "stages":
        return [last - sweep["expected_bytes_per_stage"][mode] * (values[-1] - value) for value in values]
    power = 2 if sweep["quantity"] == "image_size" else 1
    return [last * (value / values[-1]) ** power for value in values]
