"""Everything that is claimed of a GPU, on one card, in at most eight minutes; it needs torch (2.11 or newer) and timm alone.

    python -m benchmarks.gpu [--minutes 8] [--parts parity memory time graph compiled] [--json FILE]
    python -m benchmarks.gpu --toy   # on a CPU, tiny: whether it runs

Parts, each in a process of its own, so that one that fails or takes too long costs no other its results:

- ``parity``: gradients in float32, with TF32, under bf16 and fp16 autocast, in every mode: against the yardstick's on the CPU,
  and against stored mode's in the same precision;
- ``memory``: the allocator's peak against what is predicted without a card;
- ``time``: a training step of S0, S3 and S6 in every mode and budget, beside the yardstick and networks of timm;
- ``graph``: the same with the whole step captured in a CUDA graph;
- ``compiled``: the same with compiled edges.

A time is the median of turns of several steps each; networks of one name take turns. MB are 10**6 bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import describe, environment, median_and_spread, table
from benchmarks.gpu_parts import FULL, PARTS, TOY, Row

#: Shares of the time limit; what a part leaves over goes to those after it.
SHARES = {"parity": 0.15, "memory": 0.25, "time": 0.3, "graph": 0.15, "compiled": 0.15}


def run_part(part: str, device: str, toy: bool, path: Path) -> None:
    """Run a part in this process; every row is written as soon as it is there, one JSON object a line."""
    with path.open("a") as file:
        for row in PARTS[part](TOY if toy else FULL, device):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{part}: {_summary(row)}", flush=True)


def _summary(row: Row) -> str:
    where = ", ".join(str(row[key]) for key in ("network", "precision", "how") if key in row)
    where = where if "network" in row else f"{row['model']}, {row['mode']}, {where}"
    if "error" in row:
        return f"{where}: {row['error']}"
    if "seconds" in row:
        return f"{where}: {1000 * statistics.median(row['seconds']):.1f} ms"
    if "measured" in row:
        return f"{where}: {row['measured'] / 1e6:.2f} MB a sample, predicted {row['predicted'] / 1e6:.2f}"
    return f"{where}: {row['against_cpu']:.1e} from the CPU, {row['against_stored']:.1e} from stored mode"


def run_parts(parts: Iterable[str], device: str, toy: bool, minutes: float) -> dict[str, Any]:
    """Run parts one after the other, each in its own process and within its share of the time."""
    results: dict[str, Any] = {}
    end = time.monotonic() + 60 * minutes
    parts = list(parts)
    for index, part in enumerate(parts):
        share = SHARES[part] / sum(SHARES[later] for later in parts[index:])
        limit = share * max(0.0, end - time.monotonic())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            arguments = ["--only", part, "--rows", str(path), "--device", device, *(["--toy"] if toy else [])]
            begin = time.monotonic()
            try:
                process = subprocess.run([sys.executable, "-m", "benchmarks.gpu", *arguments], timeout=limit, check=False)
                ended = "complete" if process.returncode == 0 else f"failed with exit code {process.returncode}"
            except subprocess.TimeoutExpired:
                ended = f"stopped after its {limit:.0f} s"
            rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
            results[part] = {"rows": rows, "ended": ended, "seconds": time.monotonic() - begin}
            print(f"{part}: {ended}, {len(rows)} rows", flush=True)
    return results


def parity_table(rows: Iterable[Row]) -> str:
    lines = []
    for row in rows:
        cells = [row.get("error", ""), ""]
        if "error" not in row:
            same = "bit for bit" if row["identical_to_stored"] else f"{row['against_stored']:.1e}"
            cells = [f"{row['against_cpu']:.1e}", same]
        lines.append([row["precision"], row["mode"], *cells])
    return table(["precision", "mode", "gradients against the CPU's", "against stored mode's"], lines)


def memory_table(rows: Iterable[Row]) -> str:
    lines = []
    for row in rows:
        cells = [row.get("error", ""), "", ""]
        if "error" not in row:
            megabytes = [f"{row[key] / 1e6:.3g}" for key in ("measured", "predicted")]
            cells = [*megabytes, f"{100 * (row['predicted'] / row['measured'] - 1):+.1f}%"]
        lines.append([row["network"], f"{row['image_size']}, {row['batch']}", *cells])
    return table(["network", "image, batch", "MB a sample, allocator", "predicted", "off by"], lines)


def time_table(rows: Iterable[Row]) -> str:
    """Times, and ratios to the yardstick of the same size, precision and way to run."""
    rows = list(rows)

    def key(row: Row) -> tuple[str, str]:
        return row["model"], row["precision"]

    yardsticks = {
        key(row): statistics.median(row["seconds"])
        for row in rows
        if "seconds" in row and row["network"] == f"{row['model']}, plain" and row["how"] == "eager"
    }
    lines = []
    for row in rows:
        cells = [row.get("error", ""), ""]
        if "seconds" in row:
            plain = yardsticks.get(key(row))
            ratio = f"{statistics.median(row['seconds']) / plain:.2f}" if plain else "-"
            cells = [median_and_spread([1000 * s / row["batch"] for s in row["seconds"]], digits=2), ratio]
        lines.append([row["network"], f"{row['image_size']}, {row['batch']}", row["precision"], row["how"], *cells])
    header = ["network", "image, batch", "precision", "run", "ms a sample: median (min - max)", "against plain, eager"]
    return table(header, lines)


def markdown(result: Mapping[str, Any]) -> str:
    """All parts as tables."""
    lines = [f"{describe(result['environment'])}; CUDA {result['cuda']}, cuDNN {result['cudnn']}"]
    if result["environment"]["gpu"] is None:
        lines += ["", NO_CARD]
    tables = {"parity": parity_table, "memory": memory_table}
    for part, content in result["parts"].items():
        make = tables.get(part, time_table)
        lines += ["", f"## {part.capitalize()}", "", f"{content['ended'].capitalize()}, {content['seconds']:.0f} s.", ""]
        lines += [make(content["rows"])]
    return "\n".join(lines) + "\n"


NO_CARD = "Not run on a card: this was a CPU at toy size, which shows that the script runs. Its figures say nothing."


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8, help="time limit for all parts together")
    parser.add_argument("--json", type=Path, help="write the results here, and the tables beside it")
    parser.add_argument("--toy", action="store_true", help="tiny, also on a CPU: whether it runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=list(PARTS), help=argparse.SUPPRESS)  # a part's own process
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cpu" and not args.toy:
        parser.error("there is no CUDA device here: --toy runs everything on the CPU at toy size")
    return args


def main() -> None:
    args = parse_args()
    if args.only:
        run_part(args.only, args.device, args.toy, args.rows)
        return
    env = environment()
    print(describe(env), flush=True)
    parts = run_parts(args.parts, args.device, args.toy, args.minutes)
    result = {"environment": env, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "parts": parts}
    text = markdown(result)
    print(f"\n{text}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
        args.json.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
