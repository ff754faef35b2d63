"""The results of :mod:`benchmarks.votes`, ``votes_end_to_end`` and ``votes_clips`` in Markdown, without what measures them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import table

_COLUMNS = {
    "accuracy": ("accuracy", 4),
    "tied": ("ties", 0),
    "accuracy, ties drawn": ("accuracy_ties_drawn", 4),
    "negative log likelihood": ("nll", 3),
    "calibration error": ("ece", 3),
}


def _cell(runs: Sequence[Mapping[str, float | None]], key: str, digits: int) -> str:
    """The mean; with the least and the largest where they differ."""
    values = [value for run in runs if (value := run[key]) is not None]
    if not values:
        return "-"
    text = f"{statistics.mean(values):.{digits}f}"
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return text if least == most else f"{text} ({least} - {most})"


def sets_table(sets: Sequence[Mapping[str, Any]]) -> str:
    """A table for each set."""
    parts = []
    for content in sets:
        head = (
            f"**{content['set']}**: {content['items']:,} items, {content['workers']} workers, {content['votes']:,} votes, "
            f"{content['classes']} classes, {content['tied_votes']} items with tied votes, "
            f"Krippendorff's alpha {content['alpha']:.3f}"
        )
        lines = []
        for row in content["rows"]:
            if "cannot" in row:
                lines.append([row["name"], "cannot", *["-"] * 5])
                continue
            runs = row["runs"]
            cells = [_cell(runs, key, digits) for key, digits in _COLUMNS.values()]
            lines.append([row["name"], *cells, f"{row['seconds']:.1f}"])
        parts.append(f"{head}\n\n{table(['method', *_COLUMNS, 's'], lines)}")
    return "\n\n".join(parts)


def goal_text(sets: Sequence[Mapping[str, Any]], name: str = "K-RBM, H=2") -> str:
    """How K-RBM stands beside majority vote and Dawid-Skene, set by set, in sentences."""
    lines = []
    majority, model = "majority vote", "Dawid-Skene"
    for content in sets:
        runs = {row["name"]: row["runs"] for row in content["rows"] if "runs" in row}
        if not {name, majority, model} <= set(runs):
            continue
        own, least = (statistics.mean(run["accuracy"] for run in runs[who]) for who in (name, majority))
        drawn, best = runs[majority][0]["accuracy_ties_drawn"], runs[model][0]["accuracy"]
        lines.append(
            f"- {content['set']}: {name} {own:.4f}, which is {100 * (own - least):+.1f} points from majority vote with ties "
            f"to the lowest class ({100 * (own - drawn):+.1f} with ties drawn) and {100 * (own - best):+.1f} from Dawid-Skene."
        )
    return "\n".join(lines)


def time_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Seconds, a column for each number of votes."""
    counts = sorted({row["votes"] for row in rows})
    seconds = {(row["name"], row["votes"]): row["seconds"] for row in rows}
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = [
        [name, *(f"{seconds[name, count]:.2g}" if (name, count) in seconds else "-" for count in counts)] for name in names
    ]
    return table(["seconds for ... votes", *(f"{count:,}" for count in counts)], lines)


def end_to_end_table(content: Mapping[str, Any]) -> str:
    """A row for each kind of labels: mean and standard deviation over the seeds."""
    runs = content["runs"]
    lines = []
    for name in runs[0]:
        cells = []
        for key, digits, factor in (("labels", 1, 100), ("accuracy", 1, 100), ("nll", 3, 1)):
            values = [factor * row[name][key] for row in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        behind = statistics.mean(100 * (row[name]["accuracy"] - row["true labels"]["accuracy"]) for row in runs)
        lines.append([name, *cells, f"{behind:+.1f}"])
    header = ["trained on", "right labels, %", "test accuracy, %", "test negative log likelihood", "points from true labels"]
    return table(header, lines)


def _crowd_text(content: Mapping[str, Any], items: str) -> str:
    """Who votes, and on how many of each; ``items`` is what they vote on."""
    crowd = content["crowd"]
    near = "; errors fall on neighbouring levels" if crowd["ordinal"] else ""
    return (
        f"{content['votes_per_item']} votes each of {crowd['workers']} annotators "
        f"({crowd['accuracy']:.0%} right on average, {crowd['spammers']:.0%} of them spammers{near}; "
        f"{crowd['hard_items']:.0%} of the {items} are hard)"
    )


def setting_text(content: Mapping[str, Any]) -> str:
    """The simulation in a sentence."""
    crowd = _crowd_text(content, "images")
    return f"{content['images']} training images, {crowd}, {len(content['runs'])} seeds; mean ± standard deviation."


def end_to_end_text(content: Mapping[str, Any]) -> str:
    """The simulation, and the table."""
    return f"{setting_text(content)}\n\n{end_to_end_table(content)}"


def clips_table(content: Mapping[str, Any]) -> str:
    """A row for each kind of labels, and the floor: the mean, with the least and the largest of several seeds."""
    runs = content["runs"]
    columns = {"right labels, %": ("labels", 1), "top-1, %": ("top1", 1), "quadratic kappa": ("kappa", 3), "MAE": ("mae", 3)}
    lines = [
        [name, *(_cell([run[name] for run in runs], key, digits) for key, digits in columns.values())] for name in runs[0]
    ]
    floor = content["floor"]
    lines.append(
        ["always the same level", *(f"{floor[key]:.{digits}f}" if key in floor else "-" for key, digits in columns.values())]
    )
    return table(["trained on", *columns], lines)


def clips_text(content: Mapping[str, Any]) -> str:
    """The simulation, and the table."""
    seeds = len(content["runs"])
    count = "one seed" if seeds == 1 else f"{seeds} seeds: mean (least - most)"
    setting = (
        f"{content['clips']} training clips, {_crowd_text(content, 'clips')}, {content['epochs']} epochs; scored on the true "
        f"labels of {content['val_clips']} other clips; {count}."
    )
    return f"{setting}\n\n{clips_table(content)}"
