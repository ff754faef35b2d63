"""Pictures of :mod:`benchmarks.sparse_training`: memory of wide sparse networks, and Sparse-IFT's four transformations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import describe
from benchmarks.pictures import GRID, QUIET, TEXT, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPARSE, DENSE = "#cfe0f5", "#f3d9b1"
LINES = {
    ("resnet18", "stored"): ("#CC6677", "-", "ResNet-18, stored"),
    ("resnet18", "checkpointed"): ("#CC6677", ":", "ResNet-18, checkpointed"),
    ("revbifpn_s0", "stored"): ("#228833", "-", "RevBiFPN-S0, stored"),
    ("revbifpn_s0", "reversible"): ("#0b3c8c", "-", "RevBiFPN-S0, reversible"),
}


def draw_memory(content: Mapping[str, Any], path: Path) -> Path:
    """Left activations by sparsity of the wide networks, right those of the wide S0 by depth."""
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2)
    for (network, mode), (colour, style, label) in LINES.items():
        rows = [row for row in content["rows"] if (row["network"], row["mode"]) == (network, mode)]
        values = [row["activations"] / 1e6 for row in rows]
        left.plot([100 * row["sparsity"] for row in rows], values, style, color=colour, marker="o", label=label)
    left.set(
        title="Wider at equal operations",
        xlabel="Sparse-Wide for a sparsity of ..., %",
        ylabel=f"activations of a training step, MB\n({content['batch']} images of {content['side']}x{content['side']})",
        ylim=(0, None),
    )
    for mode, peaks in content["depth"].items():
        colour, style, label = LINES["revbifpn_s0", mode]
        right.plot(content["stages"], [peak / 1e6 for peak in peaks], style, color=colour, marker="o", label=label)
    right.set(title="Deeper: S0 wide for 75%", xlabel="extension stages", ylim=(0, None), xticks=content["stages"])
    for axes in (left, right):
        axes.grid(color=GRID)
        axes.legend(fontsize=8, loc="upper left")
    figure.supxlabel(describe(content["environment"]), fontsize=7, color=QUIET)
    return save(figure, path)


def draw_transformations(path: Path) -> Path:
    """Dense and the four transformations as boxes, whose widths are those of a square layer at 75% zeros."""
    figure = new_figure(12, 4.2)
    panels = figure.subplots(1, 5)
    titles = ("dense", "wide", "parallel", "factorized", "doped")
    formulas = (
        r"$\sigma(\theta z)$",
        r"$k=\sqrt{1/(1-s)}$",
        r"$\Sigma_j\,\sigma(\theta_j z),\ k=1/(1-s)$",
        r"$V\sigma(Uz),\ r=\frac{Kf}{(1-s)(K+f)}$",
        r"$\sigma(\theta z+VUz),\ r=\frac{sKf}{K+f}$",
    )
    for axes, title, formula in zip(panels, titles, formulas, strict=True):
        axes.set(xlim=(-1.15, 1.15), ylim=(-0.2, 3.3), aspect="equal")
        axes.axis("off")
        axes.set_title(title, fontsize=12, color=TEXT, y=0.92)
        axes.text(0, -0.15, formula, ha="center", va="top", fontsize=10, color=TEXT)
    _layer(panels[0], 0, 0.5, 1, DENSE, r"$\theta$", 1.0)
    _layer(panels[1], 0, 0.5, 2, SPARSE, r"$\theta$, 75% zeros", 2.0)
    for j, x in enumerate((-0.81, -0.27, 0.27, 0.81)):
        _layer(panels[2], x, 0.5, 0.46, SPARSE, rf"$\theta_{j + 1}$", 1.0)
    panels[2].text(0, 2.45, r"$+$", ha="center", fontsize=14, color=TEXT)
    _layer(panels[3], 0, 0.3, 1, SPARSE, r"$U$", 1.0)
    _layer(panels[3], 0, 1.7, 1, SPARSE, r"$V$", 1.0)
    panels[3].plot([-1.0, 1.0], [1.5, 1.5], color=TEXT, linewidth=3)
    panels[3].text(0.55, 1.56, r"$r = 2$, $\sigma$", ha="left", va="bottom", fontsize=8, color=TEXT)
    _layer(panels[4], -0.5, 0.5, 0.9, SPARSE, r"$\theta$", 1.0)
    _layer(panels[4], 0.55, 0.3, 0.5, DENSE, r"$U$", 1.0)
    _layer(panels[4], 0.55, 1.5, 0.5, DENSE, r"$V$", 1.0)
    panels[4].text(0, 2.6, r"$+$", ha="center", fontsize=14, color=TEXT)
    figure.suptitle("Sparse-IFT: five layers of equal operations (s = 75%, K = f)", fontsize=13, color=TEXT)
    figure.supxlabel("blue: sparse weight; ochre: dense weight", fontsize=9, color=QUIET)
    return save(figure, path)


def _layer(axes: Axes, x: float, y: float, width: float, colour: str, text: str, size: float) -> None:
    """A weight as a box from its inputs below to its outputs above."""
    from matplotlib.patches import Rectangle

    height = 1.0 if size == 1 else 1.6
    axes.add_patch(Rectangle((x - width / 2, y), width, height, facecolor=colour, edgecolor=TEXT, linewidth=1.2))
    axes.text(x, y + height / 2, text, ha="center", va="center", fontsize=10, color=TEXT)
    for begin in (y - 0.22, y + height):
        axes.annotate("", (x, begin + 0.2), (x, begin), arrowprops={"arrowstyle": "->", "color": TEXT})
