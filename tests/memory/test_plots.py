"""Pictures: they are drawn, show what they should, and stay small."""

from __future__ import annotations

import builtins
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from revbifpn.memory import MemoryReport, format_bytes, plots, profile_training
from revbifpn.memory.rows import ACCURACY, MEMORY, PRINTED, ComparisonRow
from tests.memory.conftest import TinyModel


@pytest.fixture
def report(tiny: TinyModel) -> MemoryReport:
    return profile_training(tiny, torch.empty(2, 3, 64, 64, device="meta"), optimizer="adamw", name="tiny", mode="reversible")


def row(name: str, per_sample: float, **changes: Any) -> ComparisonRow:
    family = name.split("_")[0]
    base = ComparisonRow(
        name, family, "stored", "predicted", (224, 224), 16, 1000, 1e9, per_sample, 2 * per_sample, 10**9, top1=80.0
    )
    return replace(base, **changes)


ROWS = [
    row("net_small", 1e7, macs=2e8, top1=71.0),
    row("net_large", 2e8, macs=9e9, top1=83.0),
    row("net_small", 3e6, macs=2e8, top1=71.0, mode="reversible"),
    row("other", 5e7, macs=3e9, top1=None),
    row("net_large", 4e8, macs=1e10, top1=83.0, method=PRINTED, image=None, params=None, peak=None),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved."""
    figures: list[Any] = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def colours_of(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 1000
        counted = image.convert("RGB").getcolors(image.width * image.height)
    return {colour for _, colour in counted}


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.lstrip("#")))


def test_timelines_are_on_one_scale(report: MemoryReport, tmp_path: Path, drawn: list[Any]) -> None:
    higher = replace(
        report,
        mode="stored",
        peak=3 * report.peak,
        timeline=[replace(point, nbytes=3 * point.nbytes) for point in report.timeline],
    )
    plots.plot_timelines([higher, report], tmp_path / "new folder" / "timelines.png", "two modes")
    assert (tmp_path / "new folder/timelines.png").stat().st_size < 300_000
    upper, lower = drawn[0].axes
    assert drawn[0].get_suptitle() == "two modes"
    assert upper.get_ylim() == lower.get_ylim()
    for axes, shown in ((upper, higher), (lower, report)):
        assert axes.get_title(loc="left") == f"{shown.mode}: {format_bytes(shown.peak)} at the peak"
        assert list(axes.lines[0].get_ydata()) == [point.nbytes for point in shown.timeline]
    with pytest.raises(ValueError, match="there are no reports to plot"):
        plots.plot_timelines([], tmp_path / "none.png", "nothing")


def test_report_shows_phases_peak_and_categories(report: MemoryReport, tmp_path: Path, drawn: list[Any]) -> None:
    path = tmp_path / "new folder" / "report.png"
    plots.plot_report(report, path)
    assert 10_000 < path.stat().st_size < 300_000
    timeline, bars = drawn[0].axes
    assert texts(timeline)[:3] == ["forward", "backward", "optimizer"]
    peak = report.peak_point
    assert texts(timeline)[3] == (
        f"peak {format_bytes(report.peak)} at operator {peak.index}\n{peak.operator} in {peak.module or 'the step itself'}"
    )
    curve, mark = timeline.lines
    assert list(curve.get_ydata()) == [point.nbytes for point in report.timeline]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (peak.index, peak.nbytes)
    shown = {name: nbytes for name, nbytes in report.categories.items() if nbytes}
    assert [bar.get_width() for bar in bars.patches][::-1] == list(shown.values())
    visible = [name for name, nbytes in shown.items() if nbytes > 0.02 * report.peak]
    assert len(visible) >= 3
    assert {rgb(plots.CATEGORY_COLOURS[name]) for name in visible} <= colours_of(path)


def test_phases_have_their_bounds(report: MemoryReport) -> None:
    phases = plots._phases(report.timeline, report.num_operators)
    assert [name for name, _, _ in phases] == ["forward", "backward", "optimizer"]
    assert phases[0][1] == 0
    assert phases[-1][2] == report.num_operators
    assert all(before[2] == after[1] for before, after in pairwise(phases))


def test_a_report_without_image_mode_and_module(report: MemoryReport, tmp_path: Path) -> None:
    plain = replace(report, image=None, mode="", timeline=[replace(p, module="") for p in report.timeline])
    plots.plot_report(plain, tmp_path / "plain.png")
    assert (tmp_path / "plain.png").stat().st_size > 10_000


def test_comparison_colours_families_and_labels_each_model_once(tmp_path: Path, drawn: list[Any]) -> None:
    path = tmp_path / "rows.png"
    plots.plot_comparison(ROWS, path, title="A title")
    assert 10_000 < path.stat().st_size < 300_000
    left, right = drawn[0].axes
    assert drawn[0].get_suptitle() == "A title"
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    assert (right.get_xscale(), right.get_yscale()) == ("linear", "log")
    assert sorted(texts(left)) == ["large", "other", "small"]
    assert sorted(texts(right)) == ["large", "small"]
    colours = {line.get_markeredgecolor() for line in left.lines if line.get_markerfacecolor() == "white"}
    assert colours == {plots.FAMILY_COLOURS[0]}, "the printed point is hollow"
    legend = [text.get_text() for text in drawn[0].legends[0].texts]
    assert legend == ["net", "other", "stored", "reversible", PRINTED]


def test_which_memory_and_which_accuracy_is_drawn(tmp_path: Path, drawn: list[Any]) -> None:
    detectors = [
        row("det_a", 1e7, macs=2e8, top1=None, box_ap=31.0),
        row("det_b", 2e7, macs=9e8, top1=None, box_ap=39.0),
        row("det_a", 3e7, macs=2e8, top1=None, box_ap=31.0, mode="printed", method=PRINTED),
        row("net_c", 4e7, macs=9e9, top1=83.0),
    ]
    detectors[2] = replace(detectors[2], per_sample=None)
    plots.plot_comparison(detectors, tmp_path / "step.png", "step_per_sample")
    plots.plot_comparison(detectors, tmp_path / "sample.png")
    for figure, label, factor, count in ((drawn[0], MEMORY["step_per_sample"], 2, 4), (drawn[1], MEMORY["per_sample"], 1, 3)):
        left, right = figure.axes
        assert left.get_ylabel() == label
        assert right.get_xlabel() == f"published {ACCURACY['box_ap']}", "most of these rows have it"
        marks = [line for line in left.lines if line.get_marker() != "None"]
        assert sorted(y for line in marks for y in line.get_ydata()) == [
            factor * n * 1e7 for n in (1, 2, 3, 4) if n != 3 or count == 4
        ]
        accuracies = {x for line in right.lines for x in line.get_xdata()}
        assert accuracies == {31.0, 39.0}


def test_labels_do_not_overlap(tmp_path: Path, drawn: list[Any]) -> None:
    crowd = [row(f"net_{i}", 1e7 * (1 + 0.05 * (i % 5)), macs=1e9 * (1 + 0.04 * i), top1=75 + 0.2 * i) for i in range(12)]
    plots.plot_comparison(crowd, tmp_path / "crowd.png")
    for axes in drawn[0].axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) >= 6
        assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_a_panel_without_figures_says_so(tmp_path: Path, drawn: list[Any]) -> None:
    plots.plot_comparison([row("one", 1e6, top1=None)], tmp_path / "one.png")
    assert texts(drawn[0].axes[1]) == ["no figures"]


def test_more_families_than_colours(tmp_path: Path) -> None:
    plots.plot_comparison([row(f"f{i}_a", 1e6 * (i + 1), mode=f"m{i}") for i in range(20)], tmp_path / "many.png")


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="no rows"):
        plots.plot_comparison([], Path("never.png"))


def test_without_matplotlib_the_error_says_what_to_install(
    report: MemoryReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'revbifpn\[memory\]'"):
        plots.plot_report(report, tmp_path / "never.png")
