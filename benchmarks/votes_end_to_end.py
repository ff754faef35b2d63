"""From votes to a classifier: what it learns from true labels, aggregated ones, and single votes.

    python -m benchmarks.votes_end_to_end [--seeds N] [--json FILE]

Simulated annotators vote on scikit-learn's digits (8x8 pixels, ten classes); the votes are aggregated, and a small network
trains on each kind of labels: hard ones by cross entropy with the class, soft ones with the probabilities as they come out of
the aggregation. It is tested on true labels of other images. Each seed draws its own split, votes and weights, and all kinds
of labels share them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.common import describe, environment, update_json
from benchmarks.votes_tables import end_to_end_text
from revbifpn.votes import METHODS, VoteTable, aggregate
from revbifpn.votes.simulate import Crowd, simulate_votes

CLASSES = 10
CROWD = Crowd(workers=40, accuracy=0.6, concentration=4.0, spammers=0.2, hard_items=0.1)
AGGREGATORS = ("majority", "dawid-skene", "k-rbm")
TRUE, SINGLE = "true labels", "single votes"


def network() -> nn.Module:
    """A small convolutional network for 1x8x8 images."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)),
    )


def train(images: Tensor, targets: Tensor, epochs: int, seed: int) -> nn.Module:
    """Train on images (N, 1, 8, 8) and class probabilities (N, K); the same start and order for all kinds of labels."""
    torch.manual_seed(seed)
    model = network().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    batches = epochs * (len(images) // 50)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=batches)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(50)[: len(images) // 50]:
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), targets[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def kinds_of_labels(
    votes: VoteTable, truth: npt.NDArray[np.int64], aggregators: Sequence[str], seed: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Targets (N, K) for the items ``"0"``, ``"1"``, ..., by the kind of labels."""
    identity = np.eye(CLASSES, dtype=np.float32)
    items = [str(item) for item in range(len(truth))]
    kinds = {TRUE: identity[truth]}
    for method in aggregators:
        result = aggregate(votes, method, seed=seed)
        soft = result.targets(items, [str(name) for name in range(CLASSES)])
        title = METHODS[method].title
        kinds[f"{title}, soft"] = soft
        kinds[f"{title}, hard"] = identity[soft.argmax(1)]
    rng = np.random.default_rng(seed)
    chosen = np.empty(len(truth), np.int64)
    for vote in rng.permutation(len(votes)):  # the last one of an item stands: each is as likely as the others
        chosen[int(votes.tasks[votes.task[vote]])] = votes.label[vote]
    kinds[SINGLE] = identity[chosen]
    return kinds


def run(seed: int, images: int, votes_per_item: int, epochs: int, aggregators: Sequence[str]) -> dict[str, dict[str, float]]:
    """Accuracy of the labels on the training images, and of what was trained on them on the test images."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    pixels = torch.from_numpy(digits.images[order]).float()[:, None] / 16
    truth = digits.target[order].astype(np.int64)
    votes, _ = simulate_votes(truth[:images], CLASSES, votes_per_item, CROWD, seed)
    result = {}
    for name, targets in kinds_of_labels(votes, truth[:images], aggregators, seed).items():
        model = train(pixels[:images], torch.from_numpy(targets), epochs, seed)
        with torch.no_grad():
            logits = model(pixels[images:])
        test = torch.from_numpy(truth[images:])
        result[name] = {
            "labels": float((targets.argmax(1) == truth[:images]).mean()),
            "accuracy": float((logits.argmax(1) == test).double().mean()),
            "nll": float(F.cross_entropy(logits, test)),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=800, help="to train on; the others of 1,797 are for testing")
    parser.add_argument("--votes-per-item", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=AGGREGATORS)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args()
    env = environment()
    print(describe(env))
    runs = []
    for seed in range(args.seeds):
        begin = time.perf_counter()
        runs.append(run(seed, args.images, args.votes_per_item, args.epochs, args.methods))
        print(f"seed {seed}: {time.perf_counter() - begin:.0f} s", flush=True)
    setting = {"images": args.images, "votes_per_item": args.votes_per_item, "epochs": args.epochs, "crowd": asdict(CROWD)}
    content = {"environment": env, **setting, "runs": runs}
    print(f"\n{end_to_end_text(content)}")
    if args.json is not None:
        update_json(args.json, {"digits": content})


if __name__ == "__main__":
    main()
