"""From votes to a clip classifier, by the tools: true labels, aggregated ones, and single votes.

    python -m benchmarks.votes_clips [--seeds N] [--jobs 2] [--json FILE]

Moving digits are made, whose level is in the order of their frames alone, and simulated annotators vote on the training clips.
From there on it is a user's way: ``tools/aggregate_votes.py`` makes the table of a split of the votes, and a file of soft
labels beside it; ``tools/train.py`` trains S0 with the shift on each kind of labels, from scratch, and scores other clips with
their true labels. Each seed draws its own clips, votes and weights, and all kinds of labels share them. A training that was
finished is not run again, one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import clips
from benchmarks.common import describe, environment, update_json
from benchmarks.votes_end_to_end import SINGLE, TRUE
from benchmarks.votes_tables import clips_text
from revbifpn.datasets.clips import read_clip_folder
from revbifpn.datasets.moving_digits import SPEEDS, MovingDigits, make_moving_digits
from revbifpn.votes.simulate import Crowd, simulate_votes

OUTPUT = "speed"
LEVELS = len(SPEEDS)
CROWD = Crowd(workers=20, accuracy=0.6, concentration=4.0, spammers=0.2, ordinal=True, hard_items=0.1)
#: What ``tools/aggregate_votes.py`` is told of the order of the levels. Of these methods K-RBM alone finds other probabilities
#: with it; without it majority vote's hard label is the level with the most votes, not the median.
AGGREGATORS: dict[str, tuple[str, ...]] = {"majority": (), "dawid-skene": (), "k-rbm": ("--ordered",)}


@dataclass(frozen=True)
class Labels:
    """Labels to train on, as a clip data set takes them.

    Attributes:
        split: whose table has the clips, and the labels if there are no soft ones.
        soft: the file of the probabilities; None for hard labels.
    """

    split: str
    soft: str | None = None

    def options(self) -> list[str]:
        """What the config is told."""
        dataset = "train_dataloader.dataset"
        soft = [] if self.soft is None else [f"{dataset}.soft_labels.{OUTPUT}={self.soft}"]
        return [f"{dataset}.split={self.split}", *soft]

    def read(self, data: Path) -> dict[str, int]:
        """The level of each clip; of probabilities the most probable one."""
        found = read_clip_folder(data, self.split, {OUTPUT: LEVELS}, None if self.soft is None else {OUTPUT: self.soft})
        labels = ((clip.name, clip.labels[0]) for clip in found.clips)
        return {name: int(np.argmax(label)) if isinstance(label, tuple) else label for name, label in labels}


KINDS = {
    TRUE: Labels("train"),
    "majority vote, hard": Labels("majority"),
    "majority vote, soft": Labels("majority", "majority_soft.csv"),
    "Dawid-Skene, soft": Labels("dawid-skene", "dawid-skene_soft.csv"),
    "K-RBM, soft": Labels("k-rbm", "k-rbm_soft.csv"),
    SINGLE: Labels("single"),
}


def write_votes(data: Path, votes_per_item: int, seed: int) -> Path:
    """Let annotators vote on the training clips, and take one vote of each clip for the split ``single``.

    Returns:
        The votes' file, with the columns of a clip folder's tables: ``path``, ``worker`` and ``speed``.
    """
    truth = KINDS[TRUE].read(data)
    names, levels = list(truth), np.array(list(truth.values()))
    votes, _ = simulate_votes(levels, LEVELS, votes_per_item, CROWD, seed)
    rows = [
        (names[int(votes.tasks[task])], f"worker {votes.workers[worker]}", int(votes.classes[label]))
        for task, worker, label in zip(votes.task, votes.worker, votes.label, strict=True)
    ]
    rng = np.random.default_rng(seed)
    # The last one of a clip stands: each is as likely as the others.
    chosen = {path: level for path, _, level in (rows[place] for place in rng.permutation(len(rows)))}
    _write(data / "votes.csv", [("path", "worker", OUTPUT), *rows])
    _write(data / f"{KINDS[SINGLE].split}.csv", [("path", OUTPUT), *((name, chosen[name]) for name in names)])
    return data / "votes.csv"


def _write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def aggregate(votes: Path, method: str, seed: int) -> None:
    """Aggregate votes by the tool: ``METHOD.csv``, which is the table of a split, and ``METHOD_soft.csv``, beside them."""
    command = [sys.executable, "tools/aggregate_votes.py", str(votes), "--method", method, *AGGREGATORS[method]]
    command += ["--task-column", "path", "--label-column", OUTPUT, "--classes", *map(str, range(LEVELS)), "--overwrite"]
    command += ["--out", str(votes.with_name(f"{method}.csv")), "--soft", str(votes.with_name(f"{method}_soft.csv"))]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(clips.ROOT)}
    done = subprocess.run([*command, "--seed", str(seed)], cwd=clips.ROOT, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{method}: {done.stderr.strip()}")


def prepare(folder: Path, digits: MovingDigits, votes_per_item: int, methods: Sequence[str]) -> Path:
    """Make the clips of a seed, the votes on them, and all kinds of labels; returns the clip folder."""
    data = folder / "data"
    make_moving_digits(data, digits)
    votes = write_votes(data, votes_per_item, digits.seed)
    for method in methods:
        aggregate(votes, method, digits.seed)
    return data


def run(kind: str, data: Path, digits: MovingDigits, epochs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Train on a kind of labels.

    Returns:
        The share of right labels in per cent, and the metrics after the last epoch; and the metrics of a constant answer.
    """
    begin = time.perf_counter()
    truth, given = KINDS[TRUE].read(data), KINDS[kind].read(data)
    folder = data.with_name(kind.replace(", ", "_").replace(" ", "_"))
    more = [*KINDS[kind].options(), f"randomness.seed={digits.seed}"]
    title = f"seed {digits.seed}, {kind}"
    clips.train("shift", data, folder, epochs, digits.num_train // clips.BATCH, title, more)
    found = clips.read(folder)
    scores = {name: found[name][-1] for name in ("top1", "kappa", "mae")}
    print(f"{title}: top-1 {scores['top1']:.1f} %, {time.perf_counter() - begin:.0f} s", flush=True)
    right = 100 * sum(given[name] == level for name, level in truth.items()) / len(truth)
    return {"labels": right, **scores}, {name: found["floor"][name] for name in scores}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All seeds and kinds of labels."""
    wanted = {KINDS[kind].split for kind in args.kinds}
    methods = [method for method in AGGREGATORS if method in wanted]
    name = f"{args.clips}_clips_{args.val_clips}_val_{args.votes_per_item}_votes_{args.epochs}_epochs"
    tasks: list[tuple[str, Path, MovingDigits, int]] = []
    for seed in range(args.seeds):
        digits = MovingDigits(args.clips, args.val_clips, seed)
        data = prepare(args.work_dir.resolve() / name / f"seed_{seed}", digits, args.votes_per_item, methods)
        tasks += [(kind, data, digits, args.epochs) for kind in args.kinds]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda task: run(*task), tasks))
    runs: list[dict[str, Any]] = [{} for _ in range(args.seeds)]
    for (kind, _, digits, _), (scores, _) in zip(tasks, results, strict=True):
        runs[digits.seed][kind] = scores
    setting = {"clips": args.clips, "val_clips": args.val_clips, "votes_per_item": args.votes_per_item, "epochs": args.epochs}
    return {**setting, "crowd": asdict(CROWD), "floor": results[0][1], "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--clips", type=int, default=320, help="to train on (default: %(default)s)")
    parser.add_argument("--val-clips", type=int, default=200, help="to score (default: %(default)s)")
    parser.add_argument("--votes-per-item", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of labels")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, of one thread each (default: %(default)s)")
    parser.add_argument("--work-dir", type=Path, default=clips.ROOT / "work_dirs/votes_clips", help="for clips and trainings")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as the trainings have
    env = environment()
    print(describe(env))
    content = {"environment": env, **measure(args)}
    print(f"\n{clips_text(content)}")
    if args.json is not None:
        update_json(args.json, content)


if __name__ == "__main__":
    main()
