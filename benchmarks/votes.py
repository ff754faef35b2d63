"""Ways to aggregate votes, on sets whose true labels are known: how right, how sure, how calibrated, how fast.

    python -m benchmarks.votes --votes FOLDER [--methods NAME ...] [--json FILE]
    python -m benchmarks.votes --parts time [--json FILE]

FOLDER has a folder for each set, with ``label.csv`` (columns item, worker, label) and ``truth.csv`` (item, truth). Where votes
or probabilities are tied, the lowest class counts; how many items are tied, and what accuracy is expected if ties are drawn,
stands beside it. A method that draws random numbers runs with several seeds. Times are of simulated votes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import crowdkit
import numpy as np
import numpy.typing as npt

from benchmarks.common import describe, environment, update_json
from benchmarks.votes_tables import goal_text, sets_table, time_table
from revbifpn.votes import METHODS, Aggregation, VoteError, VoteTable, aggregate, read_gold, read_votes
from revbifpn.votes.reliability import krippendorff_alpha
from revbifpn.votes.simulate import Crowd, simulate_votes
from revbifpn.votes.table import in_order

BINS = 10
LEAST = 1e-6  # a smaller probability of the true class counts as this one in the log likelihood
_TIE = 1e-9
#: What is compared: a name in tables, the method, and its settings.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{METHODS[name].title: (name, {}) for name in METHODS if name not in ("gold-majority", "k-rbm")},
    "K-RBM, H=2": ("k-rbm", {}),
    "K-RBM, H=2, hard": ("k-rbm", {"soft": False}),
    "K-RBM, H=0": ("k-rbm", {"n_hidden": 0}),
}


def scores(result: Aggregation, truth: npt.NDArray[np.int64]) -> dict[str, float | None]:
    """Accuracy, and where there are probabilities the rest.

    Args:
        result: aggregated votes.
        truth: (N,) true classes, -1 where unknown; those items do not count.
    """
    known = truth >= 0
    truth, right = truth[known], (result.labels == truth)[known]
    if result.found.probas is None:
        return {"accuracy": float(right.mean()), "ties": None, "accuracy_ties_drawn": None, "nll": None, "ece": None}
    probas = result.probas[known]
    best = probas >= probas.max(1, keepdims=True) - _TIE
    rows = np.arange(len(truth))
    return {
        "accuracy": float(right.mean()),
        "ties": float((best.sum(1) > 1).sum()),
        "accuracy_ties_drawn": float((best[rows, truth] / best.sum(1)).mean()),
        "nll": float(-np.log(probas[rows, truth].clip(min=LEAST)).mean()),
        "ece": calibration_error(probas.max(1), probas.argmax(1) == truth),
    }


def calibration_error(confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - confidence| in bins of equal width, weighted by their items."""
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[number == place].mean() - confidence[number == place].mean()) for place in np.unique(number)]
    sizes = [(number == place).mean() for place in np.unique(number)]
    return float(np.dot(gaps, sizes))


def read_set(folder: Path) -> tuple[VoteTable, npt.NDArray[np.int64]]:
    """Votes and true classes (-1 where unknown) of a set; a true class that nobody voted for is one of its classes too."""
    votes = read_votes(folder / "label.csv", task="item")
    truth = read_gold(folder / "truth.csv", task="item", label="truth")
    if unseen := set(truth.values()) - set(votes.classes):
        votes = read_votes(folder / "label.csv", task="item", classes=in_order({*votes.classes, *unseen}))
    places = {name: place for place, name in enumerate(votes.classes)}
    return votes, np.array([places.get(truth.get(task, ""), -1) for task in votes.tasks])


def measure_set(folder: Path, variants: Sequence[str], seeds: int) -> dict[str, Any]:
    """All variants on a set."""
    votes, truth = read_set(folder)
    rows: list[dict[str, Any]] = []
    for name in variants:
        method, settings = VARIANTS[name]
        runs: list[dict[str, float | None]] = []
        seconds = []
        random = METHODS[method].random and settings.get("n_hidden") != 0
        try:
            for seed in range(seeds if random else 1):
                begin = time.perf_counter()
                result = aggregate(votes, method, seed=seed, settings=settings)
                seconds.append(time.perf_counter() - begin)
                runs.append(scores(result, truth))
        except VoteError as error:
            rows.append({"name": name, "cannot": str(error)})
            print(f"{folder.name}, {name}: {error}", flush=True)
            continue
        rows.append({"name": name, "runs": runs, "seconds": statistics.median(seconds)})
        print(f"{folder.name}, {name}: accuracy {[run['accuracy'] for run in runs]}, {seconds[0]:.1f} s", flush=True)
    return {
        "set": folder.name,
        **{"items": len(votes.tasks), "workers": len(votes.workers), "votes": len(votes), "classes": len(votes.classes)},
        **{"tied_votes": votes.tied, "alpha": krippendorff_alpha(votes), "rows": rows},
    }


def known_sets(path: Path | None) -> dict[str, Any]:
    """Sets that a JSON file has, by name."""
    if path is None or not path.is_file():
        return {}
    return {content["set"]: content for content in json.loads(path.read_text()).get("sets", {}).get("sets", [])}


def measure_time(counts: Sequence[int], variants: Sequence[str], limit: float) -> list[dict[str, Any]]:
    """Seconds against the number of votes: 4 classes, 10 votes an item, 100 votes a worker.

    A variant does not get a number of votes for which it would need more than ``limit`` seconds, if its time goes on growing
    as it did from one number to the next.
    """
    rows: list[dict[str, Any]] = []
    expected: dict[str, float] = {}
    for count in counts:
        items = max(count // 10, 2)
        truth = np.random.default_rng(0).integers(0, 4, items)
        votes, _ = simulate_votes(truth, 4, 10, Crowd(workers=max(count // 100, 10)))
        for name in variants:
            method, settings = VARIANTS[name]
            if expected.get(name, 0.0) > limit:
                continue
            begin = time.perf_counter()
            try:
                aggregate(votes, method, settings=settings)
            except VoteError:
                continue
            seconds = time.perf_counter() - begin
            rows.append({"name": name, "votes": len(votes), "seconds": seconds})
            print(f"{len(votes):,} votes, {name}: {seconds:.2f} s", flush=True)
            before = [row["seconds"] for row in rows if row["name"] == name]
            expected[name] = seconds * max(seconds / before[-2], 1.0) if len(before) > 1 else 0.0
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("sets", "time"), default=["sets", "time"])
    parser.add_argument("--votes", type=Path, help="folder with a folder for each set")
    parser.add_argument("--sets", nargs="+", help="names of the sets (default: all)")
    parser.add_argument("--methods", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="runs of a random method")
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="votes to take the time of")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds that a method may be expected to take")
    parser.add_argument("--json", type=Path, help="write the numbers here; parts and sets that are not measured are kept")
    args = parser.parse_args()
    if "sets" in args.parts and args.votes is None:
        parser.error("--votes FOLDER is needed, or --parts time")
    env = environment() | {"crowd-kit": crowdkit.__version__}
    print(describe(env))
    results: dict[str, Any] = {}
    if "sets" in args.parts:
        folders = sorted(path.parent for path in args.votes.glob("*/label.csv"))
        folders = [folder for folder in folders if args.sets is None or folder.name in args.sets]
        if not folders:
            parser.error(f"{args.votes} has no folder with label.csv and truth.csv")
        sets = known_sets(args.json)
        for folder in folders:
            sets[folder.name] = measure_set(folder, args.methods, args.seeds)
            results["sets"] = {"environment": env, "seeds": args.seeds, "sets": [sets[name] for name in sorted(sets)]}
            if args.json is not None:
                update_json(args.json, results)
        sets_now = [sets[folder.name] for folder in folders]
        print(f"\n{sets_table(sets_now)}\n\n{goal_text(sets_now)}")
    if "time" in args.parts:
        rows = measure_time(args.counts, args.methods, args.limit)
        results["time"] = {"environment": env, "rows": rows}
        print(f"\n{time_table(rows)}")
    if args.json is not None:
        update_json(args.json, results)


if __name__ == "__main__":
    main()
