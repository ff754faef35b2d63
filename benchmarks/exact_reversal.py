"""Exact reversal against ordinary reversal: error growth with depth, cost in time, and change of the forward values.

    python -m benchmarks.exact_reversal [--parts growth cost forward] [--json FILE] [--plot FILE] [--quick]

1. Error growth: RevBiFPN-S0 with more and more stages. Relative error (2-norm) of the input that is rebuilt from the last
   pyramid, and of the gradients against stored mode's, in float32 and under bf16 autocast.
2. Cost: one training step, stored / reversible / exact, side by side.
3. Forward values: relative difference (2-norm) of the pyramid's levels between exact mode and the ordinary one.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import describe, environment, median_and_spread, table, time_side_by_side
from benchmarks.pictures import QUIET, new_figure, save
from revbifpn import RevBiFPN, ReversalPrecisionWarning, set_exact, set_reversible
from revbifpn.models import VARIANTS
from revbifpn.models.variants import STRIDES

DEPTHS = (3, 5, 10, 20, 50, 100)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def step(model: nn.Module, image: Tensor, bf16: bool) -> Tensor:
    """One forward and backward pass; returns all gradients as one vector."""
    model.zero_grad()
    torch.manual_seed(0)  # the same dropout in every mode
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        loss = model(image).float().square().mean()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def error_growth(depth: int, exact: bool, bf16: bool, device: str) -> dict[str, Any]:
    """Errors of S0 with ``depth`` stages at 64x64, batch 2."""
    torch.manual_seed(0)
    variant = dataclasses.replace(VARIANTS["s0"], num_ext_layers=depth - 3)
    model = RevBiFPN(variant, num_classes=10, exact=exact).to(device).train()
    image = torch.randn(2, 3, 64, 64, device=device)
    stored = set_reversible(copy.deepcopy(model), False)
    ours, theirs = step(model, image, bf16), step(stored, image, bf16)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        (rebuilt,) = model.body.inverse(*model.forward_body(image))
    original = torch.round(image * 2**13) / 2**13 if exact else image
    return {
        "depth": depth,
        "mode": "exact" if exact else "ordinary",
        "precision": "bf16 autocast" if bf16 else "float32",
        "rebuilt_input_error": relative_error(rebuilt, original),
        "gradient_error": relative_error(ours, theirs),
        "gradient_bit_identical": bool(torch.equal(ours, theirs)),
    }


def cost(name: str, batch: int, size: int, repeats: int, bf16: bool, device: str) -> dict[str, Any]:
    """Seconds of a training step in the three modes."""
    torch.manual_seed(0)
    reversible = RevBiFPN(name, num_classes=10, exact=False).to(device).train()
    models = {
        "stored": set_reversible(copy.deepcopy(reversible), False),
        "reversible": reversible,
        "exact": set_exact(copy.deepcopy(reversible), True),
    }
    image = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    def run(model: nn.Module) -> Callable[[], object]:
        return lambda: step(model, image, bf16)

    seconds = time_side_by_side({mode: run(model) for mode, model in models.items()}, repeats)
    return {
        "model": f"revbifpn_{name}",
        "batch": batch,
        "image_size": size,
        "precision": "bf16 autocast" if bf16 else "float32",
        "seconds": seconds,
    }


def forward_change(name: str, device: str) -> dict[str, Any]:
    """Relative difference of the levels between exact mode and the ordinary one, with batch statistics."""
    torch.manual_seed(0)
    model = RevBiFPN(name, drop_path_rate=0.0, exact=False).to(device).train()
    size = VARIANTS[name].image_size
    image = torch.randn(2, 3, size, size, device=device)
    with torch.no_grad():
        ordinary = model.forward_pyramid(image)
        changes = {}
        for bits in (10, 13, 16):
            set_exact(model, True, exact_bits=bits)
            exact = model.forward_pyramid(image)
            changes[bits] = [relative_error(a, b) for a, b in zip(exact, ordinary, strict=True)]
    return {"model": f"revbifpn_{name}", "image_size": size, "level_errors_by_bits": changes}


def plot(rows: list[dict[str, Any]], path: Path, caption: str) -> None:
    """Gradient error against depth, a line for each precision; exact mode's is zero and drawn at the bottom."""
    figure = new_figure(7, 4.4)
    axes = figure.subplots()
    floor = 1e-9
    for mode, precision, style in (
        ("ordinary", "bf16 autocast", "o-"),
        ("ordinary", "float32", "s-"),
        ("exact", "bf16 autocast", "^--"),
        ("exact", "float32", "v:"),
    ):
        chosen = [row for row in rows if row["mode"] == mode and row["precision"] == precision]
        errors = [max(row["gradient_error"], floor) for row in chosen]
        axes.plot([row["depth"] for row in chosen], errors, style, label=f"{mode}, {precision}")
    axes.set(xscale="log", yscale="log", xlabel="RevSilos", ylabel="relative error of the gradients")
    depths = sorted({row["depth"] for row in rows})
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    axes.axhline(floor, color=QUIET, linewidth=0.5)
    axes.annotate("0: bit-identical to stored mode", (depths[0], floor * 1.5), color=QUIET, fontsize=8)
    axes.set_title("Reversible against stored gradients, RevBiFPN-S0 with more stages", fontsize=10)
    axes.legend(fontsize=8)
    figure.supxlabel(caption, fontsize=8, color=QUIET)
    save(figure, path)


def growth_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Errors of the gradients, a column for each depth."""
    errors: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        errors.setdefault((row["mode"], row["precision"]), {})[row["depth"]] = row["gradient_error"]
    depths = sorted({depth for by_depth in errors.values() for depth in by_depth})
    lines = [
        [", ".join(setting), *(f"{by_depth[depth]:.1e}" if by_depth[depth] else "0" for depth in depths)]
        for setting, by_depth in errors.items()
    ]
    return table(["relative error of the gradients at ... RevSilos", *map(str, depths)], lines)


def cost_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Times of a step in the three modes."""
    lines = []
    for row in rows:
        seconds = row["seconds"]
        ratio = statistics.median(seconds["exact"]) / statistics.median(seconds["reversible"])
        times = [median_and_spread(seconds[mode]) for mode in ("stored", "reversible", "exact")]
        lines.append([row["model"], f"{row['batch']}, {row['image_size']}", row["precision"], *times, f"{ratio:.2f}"])
    header = ["model", "batch, image", "precision", "stored, s", "reversible, s", "exact, s", "exact against reversible"]
    return table(header, lines)


def forward_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """What the grid does to the levels."""
    lines = [
        [row["model"], bits, *(f"{error:.1e}" for error in errors)]
        for row in rows
        for bits, errors in row["level_errors_by_bits"].items()
    ]
    return table(["model", "exact_bits", *(f"change at stride {stride}" for stride in STRIDES)], lines)


def measure_growth(quick: bool, device: str) -> list[dict[str, Any]]:
    """Error growth."""
    rows = []
    for depth in DEPTHS[:2] if quick else DEPTHS:
        for exact in (False, True):
            for bf16 in (False, True):
                row = error_growth(depth, exact, bf16, device)
                rows.append(row)
                print(f"{depth} RevSilos, {row['mode']}, {row['precision']}: {row['gradient_error']:.1e}", flush=True)
    return rows


def measure_cost(quick: bool, device: str, repeats: int) -> list[dict[str, Any]]:
    """Cost in time."""
    rows = []
    for name in ("s0",) if quick else ("s0", "s1", "s3"):
        for bf16 in (False, True):
            rows.append(cost(name, 4, 64 if quick else 192, repeats, bf16, device))
            print(f"cost of revbifpn_{name}, {rows[-1]['precision']}: done", flush=True)
    return rows


def measure_forward(quick: bool, device: str) -> list[dict[str, Any]]:
    """Change of the forward values."""
    return [forward_change(name, device) for name in (("s0",) if quick else ("s0", "s3"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("growth", "cost", "forward"), default=["growth", "cost", "forward"])
    parser.add_argument("--json", type=Path, help="write the numbers here; parts that are not measured are kept")
    parser.add_argument("--plot", type=Path, help="draw the error growth here")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps of each mode")
    parser.add_argument(
        "--quick", action="store_true", help="small depths and one model: whether it runs, not numbers to quote"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore", ReversalPrecisionWarning)  # what is measured here
    device = "cuda" if torch.cuda.is_available() else "cpu"
    env = environment()
    print(describe(env))
    result: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {}
    if "growth" in args.parts:
        result["growth"] = {"environment": env, "rows": measure_growth(args.quick, device)}
        if args.plot:
            plot(result["growth"]["rows"], args.plot, describe(env))
    if "cost" in args.parts:
        result["cost"] = {"environment": env, "rows": measure_cost(args.quick, device, args.repeats)}
    if "forward" in args.parts:
        result["forward"] = {"environment": env, "rows": measure_forward(args.quick, device)}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    for part, as_table in (("growth", growth_table), ("cost", cost_table), ("forward", forward_table)):
        if part in args.parts:
            print(f"\n{as_table(result[part]['rows'])}")


if __name__ == "__main__":
    main()
