"""What a training step costs, in memory and in time: RevBiFPN in every mode beside what one would use instead.

    python -m benchmarks.training_cost                  # everything: print, then write JSON, Markdown and pictures
    python -m benchmarks.training_cost --parts cost --groups s0 --only time
    python -m benchmarks.training_cost --toy            # whether it runs; no figures to quote

Parts: ``cost`` (groups of networks, below), ``growth`` (with batch, image and depth), ``inference``. What a run does not
measure stays in the JSON file as it was; each part carries its own environment.

Networks: RevBiFPN with activation budgets from 0 (*reversible*) to 1 (*stored*) and in exact mode, images and weights
contiguous as whoever sets nothing has them; *plain*, the ordinary network of the same layers (:mod:`benchmarks.plain`),
contiguous and channels_last, also checkpointed stage by stage; networks of timm, channels_last, which is faster, also with
timm's own checkpointing. A step is forward, cross entropy, backward, SGD with momentum. Its time is the median of steps in
turns (A B C A B C); its *activations* are the highest sum of live allocations in forward and backward less the parameters'
gradients, from the CPU allocator's events, and as predicted for CUDA. All is float32; MB are 10**6 bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import cost_plots, cost_tables, growth, inference
from benchmarks.common import activation_bytes, describe, environment, time_side_by_side, trainer, update_json
from benchmarks.networks import (
    OWN_MODES,
    PLAIN_MODES,
    TIMM_MODES,
    Network,
    NotThereError,
    build_all,
    image_size_of,
    modes_of,
)

MODES = tuple(dict.fromkeys((*PLAIN_MODES, *OWN_MODES, *TIMM_MODES)))
PARTS = ("cost", "growth", "inference")
#: Groups whose networks take turns: S0 beside common networks, then networks of equal published accuracy. Name and batch.
GROUPS: dict[str, tuple[tuple[str, int], ...]] = {
    "s0": (
        ("revbifpn_s0", 8),
        ("efficientnet_b0", 8),
        ("efficientnet_b3", 8),
        ("hrnet_w18", 8),
        ("resnet50", 8),
        ("mobilenetv3_large_100", 8),
    ),
    "s2": (("revbifpn_s2", 8), ("efficientnet_b0", 8), ("efficientnet_b1", 8)),
    "s3": (("revbifpn_s3", 4), ("efficientnet_b3", 4)),
    "s6": (("revbifpn_s6", 16), ("efficientnet_b7", 16)),
}
#: Too large for a step on a CPU: predicted for CUDA only.
PREDICTED_ONLY = ("s6",)
RESULTS = Path(__file__).with_suffix(".json")
TOY_RESULTS = Path("work_dirs/benchmarks/training_cost.json")
PICTURES = Path("docs/images")

Progress = Callable[[str], None]


def networks_of(group: str, models: Sequence[str] | None = None) -> list[Network]:
    """The networks of a group in all their modes, the yardstick first."""
    networks = []
    for name, batch in GROUPS[group]:
        if models is not None and name not in models:
            continue
        for mode in modes_of(name):
            network = Network(name, mode, batch, image_size_of(name))
            if mode == "plain":
                networks += [network, replace(network, channels_last=True)]
            else:
                networks.append(replace(network, channels_last=not name.startswith("revbifpn_")))
    return networks


def measure_memory(networks: Iterable[Network], measured: bool, progress: Progress) -> dict[str, dict[str, float | None]]:
    """Bytes a sample of every network: measured on this CPU (if ``measured``), and predicted for CUDA."""
    result: dict[str, dict[str, float | None]] = {}
    for network in networks:
        try:
            on_cpu = activation_bytes(*network.on("cpu")) / network.batch if measured else None
            on_cuda = activation_bytes(*network.on("meta"), "cuda", "predict") / network.batch
        except NotThereError as missing:
            progress(f"left out: {missing}")
            continue
        result[str(network)] = {"cpu": on_cpu, "cuda": on_cuda}
        progress(f"memory of {network}: {(on_cpu or on_cuda) / 1e6:.2f} MB a sample")
    return result


def measure_time(networks: Iterable[Network], repeats: int, progress: Progress) -> dict[str, list[float]]:
    """Seconds of a step of every network, in turns."""
    steps = {str(n): trainer(model, n.images(), n.labels()) for n, model in build_all(networks).items()}
    progress(f"time of {len(steps)} networks in turns")
    return time_side_by_side(steps, repeats)


def measure_group(group: str, args: argparse.Namespace, before: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Memory and time of a group; what is not asked for is taken from ``before``."""
    networks = [n for n in networks_of(group, args.models) if args.modes is None or n.mode in args.modes]
    if args.toy:
        networks = [replace(network, batch=2, image_size=32) for network in networks]
    env = environment()
    result = dict(before)
    result["networks"] = before.get("networks", {}) | {str(n): asdict(n) | {"top1": n.top1} for n in networks}
    if args.only != "time":
        bytes_per_sample = measure_memory(networks, group not in PREDICTED_ONLY, progress)
        earlier = before.get("memory", {})
        if _same_machine(earlier.get("environment", {}), env):
            bytes_per_sample = earlier["bytes_per_sample"] | bytes_per_sample
        result["memory"] = {"environment": env, "bytes_per_sample": bytes_per_sample}
    if args.only != "memory" and group not in PREDICTED_ONLY:
        # Only what took turns is comparable: times are never joined with earlier ones.
        result["time"] = {"environment": env, "seconds": measure_time(networks, args.repeats, progress)}
    return result


def _same_machine(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return all(earlier.get(key) == value for key, value in now.items() if key != "date")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for; written to ``args.json`` part by part, so that nothing measured is lost."""

    def progress(text: str) -> None:
        print(text, flush=True)

    results: dict[str, Any] = json.loads(args.json.read_text()) if args.json.is_file() else {}
    if "cost" in args.parts:
        for group in args.groups:
            cost = results.get("cost", {})
            cost[group] = measure_group(group, args, cost.get(group, {}), progress)
            results = update_json(args.json, {"cost": cost})
    if "growth" in args.parts:
        modes = [mode for mode in growth.MODES if args.modes is None or mode in args.modes]
        sweeps = [growth.measure_sweep(sweep, modes, progress) for sweep in (growth.TOY_SWEEPS if args.toy else growth.SWEEPS)]
        results = update_json(args.json, {"growth": {"environment": environment(), "sweeps": sweeps}})
    if "inference" in args.parts:
        rows = inference.measure("revbifpn_s0", 32 if args.toy else 224, (1, 8), args.repeats, progress)
        results = update_json(args.json, {"inference": {"environment": environment(), "rows": rows}})
    return results


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="of the part 'cost'")
    parser.add_argument("--models", nargs="+", help="only these of the groups' networks, by timm name")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="only these; of the parts 'cost' and 'growth'")
    parser.add_argument("--only", choices=("memory", "time"), help="of the part 'cost'")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help=f"results, kept and updated (default: benchmarks/{RESULTS.name})")
    parser.add_argument("--pictures", type=Path, help="folder of the pictures (default: docs/images)")
    parser.add_argument("--draw", action="store_true", help="measure nothing: tables and pictures of what the JSON file has")
    parser.add_argument("--toy", action="store_true", help="tiny images, one timed step, into work_dirs/benchmarks")
    args = parser.parse_args()
    known = {name for group in args.groups for name, _ in GROUPS[group]}
    if unknown := sorted(set(args.models or ()) - known):
        parser.error(f"--models: {', '.join(unknown)} not in these groups, which have {', '.join(sorted(known))}")
    args.json = args.json or (TOY_RESULTS if args.toy else RESULTS)
    args.pictures = args.pictures or (args.json.parent if args.toy else PICTURES)
    if args.toy:
        args.repeats = 1
    if args.draw and not args.json.is_file():
        parser.error(f"--draw: there is no {args.json} to draw from")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    print(describe(environment()), flush=True)
    results = json.loads(args.json.read_text()) if args.draw else measure(args)
    text = cost_tables.markdown(results)
    print(f"\n{text}")
    args.json.with_suffix(".md").write_text(text)
    for picture in cost_plots.draw(results, args.pictures):
        print(f"drawn: {picture}")


if __name__ == "__main__":
    main()
