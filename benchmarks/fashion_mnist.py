"""A real training, in all modes and beside other networks: S0 on Fashion-MNIST, three epochs at 64x64 on a CPU.

Trains each setting with ``tools/train.py`` and ``configs/fashion_mnist``: same seed, same recipe, same number of steps. A
setting that was finished is not trained again, one that was interrupted goes on. Then writes ``fashion_mnist.json`` and the
picture of the curves. Single-threaded processes, so that sums have one order and runs can be compared bit for bit.

    python tools/make_fashion_mnist.py
    python -m benchmarks.fashion_mnist [--jobs 2] [--settings stored reversible] [--epochs 3] [--json FILE] [--picture FILE]

With ``--settings`` the other settings' results stay as they are in the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from benchmarks.common import describe, environment, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/fashion_mnist.json"
PICTURE = ROOT / "docs/images/fashion_mnist.png"
CONFIG = ROOT / "configs/fashion_mnist/revbifpn-s0_fashion-mnist.py"
EPOCHS = 3
MEAN_OVER = 20  # steps, in the committed curves

# Longest first.
SETTINGS = {
    "exact": ["model.model_args.exact=True"],
    "reversible": [],
    "exact stored": ["model.model_args.exact=True", "model.model_args.reversible=False"],
    "stored": ["model.model_args.reversible=False"],
    "efficientnet_b0": ["model.name=efficientnet_b0"],
    "mobilenetv3_large_100": ["model.name=mobilenetv3_large_100"],
}
# Pairs that must agree.
PAIRS = {"reversible and stored": ("reversible", "stored"), "exact and exact stored": ("exact", "exact stored")}
LINES = {  # style and width of a setting's line in the picture
    "exact": ("-", 3.2),
    "reversible": ("--", 1.4),
    "exact stored": ("-.", 1.4),
    "stored": (":", 2.4),
    "efficientnet_b0": ("-", 1.2),
    "mobilenetv3_large_100": ("-", 1.2),
}
# Large blocks stay with the process instead of being mapped, and zeroed by the kernel, at every step.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592", "MALLOC_TOP_PAD_": "268435456"}


def train(setting: str, work_dir: Path, data: Path, epochs: int) -> None:
    """Train a setting in a process of its own, unless its last checkpoint is there."""
    folder = work_dir / setting.replace(" ", "_")
    if (folder / f"epoch_{epochs}.pth").is_file() and _steps(folder):
        print(f"{setting}: finished before", flush=True)
        return
    options = [
        *SETTINGS[setting],
        f"train_cfg.max_epochs={epochs}",
        f"train_dataloader.dataset.root={data}",
        f"val_dataloader.dataset.root={data}",
        "default_hooks.logger.interval=1",
        "log_processor.window_size=1",  # every step's own loss, to be compared bit for bit
    ]
    command = [sys.executable, "tools/train.py", str(CONFIG), "--work-dir", str(folder), "--resume", "--cfg-options", *options]
    print(f"{setting}: training", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("a") as log:
        variables = {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
        # A session of its own: Linux shares the processor out between sessions.
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=variables, start_new_session=True)
    if done.returncode != 0:
        sys.exit(f"{setting}: training failed, see {folder / 'output.log'}")
    print(f"{setting}: finished", flush=True)


def _scalars(folder: Path) -> list[dict[str, Any]]:
    """All records that MMEngine wrote, oldest first: one file for each start of the training."""
    paths = sorted(folder.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def _steps(folder: Path) -> list[float]:
    """The loss of each step; of a step that was repeated after an interruption the last."""
    losses = {record["step"]: record["loss"] for record in _scalars(folder) if "lr" in record}
    return [losses[step] for step in sorted(losses)]


def read(setting: str, work_dir: Path, epochs: int) -> dict[str, Any]:
    """Curves, accuracy and hashes of a finished setting."""
    folder = work_dir / setting.replace(" ", "_")
    losses = _steps(folder)
    scores = {record["step"]: record for record in _scalars(folder) if "accuracy/top1" in record}
    checkpoint = torch.load(folder / f"epoch_{epochs}.pth", map_location="cpu", weights_only=False)
    name = next((option.removeprefix("model.name=") for option in SETTINGS[setting] if "model.name" in option), "revbifpn_s0")
    return {
        "model": name,
        "parameters": sum(p.numel() for p in timm.create_model(name, num_classes=10).parameters()),
        "steps": len(losses),
        "top1": [round(scores[step]["accuracy/top1"], 2) for step in sorted(scores)],
        "top5": [round(scores[step]["accuracy/top5"], 2) for step in sorted(scores)],
        "val_loss": [scores[step]["accuracy/loss"] for step in sorted(scores)],
        "train_loss": [round(_mean(losses[i : i + MEAN_OVER]), 5) for i in range(0, len(losses), MEAN_OVER)],
        "losses_sha256": hashlib.sha256(json.dumps(losses).encode()).hexdigest(),
        # MMEngine's EMA hook swaps: the state dict holds the averaged weights, its own entry those of the last step.
        "ema_weights_sha256": _sha256(checkpoint["state_dict"]),
        "weights_sha256": _sha256(checkpoint["ema_state_dict"]),
        "losses": losses,
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _sha256(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """How two runs agree, step by step."""
    differences = [abs(x - y) for x, y in zip(a["losses"], b["losses"], strict=True)]
    return {
        "first_step_that_differs": next((step + 1 for step, d in enumerate(differences) if d), None),
        "max_loss_difference_in_the_first_10_steps": max(differences[:10]),
        "max_loss_difference": max(differences),
        "mean_loss_difference": _mean(differences),
        "same_losses_bit_for_bit": a["losses_sha256"] == b["losses_sha256"],
        "same_weights_bit_for_bit": a["weights_sha256"] == b["weights_sha256"],
        "same_ema_weights_bit_for_bit": a["ema_weights_sha256"] == b["ema_weights_sha256"],
        "top1_difference": round(a["top1"][-1] - b["top1"][-1], 2),
    }


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Training loss over the steps, and validation accuracy after each epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), dpi=110)
    for name, run in runs.items():
        style, width = LINES[name]
        label = f"S0 {name}" if run["model"] == "revbifpn_s0" else name
        steps = [MEAN_OVER * (i + 0.5) for i in range(len(run["train_loss"]))]
        left.plot(steps, run["train_loss"], style, linewidth=width, label=label)
        right.plot(
            range(1, len(run["top1"]) + 1),
            run["top1"],
            style,
            linewidth=width,
            marker="o",
            label=f"{label}: {run['top1'][-1]:.2f}",
        )
    left.set(xlabel="step", ylabel=f"training loss (mean of {MEAN_OVER} steps)", ylim=(0.6, 1.2))
    right.set(
        xlabel="epoch",
        ylabel="top-1 on the 10,000 test images, %",
        xticks=range(1, max(len(run["top1"]) for run in runs.values()) + 1),
    )
    left.legend(fontsize=8)
    right.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def as_table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The settings' results in Markdown."""
    lines = []
    for name, run in runs.items():
        top1 = " / ".join(f"{value:.2f}" for value in run["top1"])
        network = name if name == run["model"] else f"{run['model']}, {name}"
        lines.append([network, f"{run['parameters']:,}", run["steps"], top1, f"{run['val_loss'][-1]:.4f}"])
    return table(["network, mode", "parameters", "steps", "top-1 after each epoch, %", "validation loss at the end"], lines)


def agreement_text(agreement: Mapping[str, Mapping[str, Any]]) -> str:
    """How the pairs agree, a sentence each."""
    sentences = []
    for pair, found in agreement.items():
        if found["same_losses_bit_for_bit"] and found["same_weights_bit_for_bit"] and found["same_ema_weights_bit_for_bit"]:
            how = "are one training: all losses, the weights and the EMA weights are equal bit for bit"
        else:
            how = (
                f"differ from step {found['first_step_that_differs']} on: their losses by at most "
                f"{found['max_loss_difference_in_the_first_10_steps']:.0e} in the first 10 steps, and over the whole training "
                f"by {found['mean_loss_difference']:.3f} on average and {found['max_loss_difference']:.3f} at most"
            )
        sentences.append(f"- *{pair[0].upper()}{pair[1:]}* {how}.")
    return "\n".join(sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=ROOT / "data/fashion_mnist", help="what tools/make_fashion_mnist.py wrote"
    )
    parser.add_argument("--work-dir", type=Path, default=ROOT / "work_dirs/fashion_mnist", help="folder for the trainings")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, of one thread each")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="what to train (default: all)")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--json", type=Path, default=RESULTS, help="results, kept and updated")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(
            pool.map(lambda setting: train(setting, args.work_dir.resolve(), args.data.resolve(), args.epochs), args.settings)
        )

    env = environment()
    before = json.loads(args.json.read_text()) if args.json.is_file() else {"agreement": {}, "runs": {}}
    trained = {setting: read(setting, args.work_dir, args.epochs) | {"environment": env} for setting in args.settings}
    agreement = {}
    for pair, (a, b) in PAIRS.items():
        if a in trained and b in trained:
            agreement[pair] = compare(trained[a], trained[b])
        elif a not in trained and b not in trained and pair in before["agreement"]:
            agreement[pair] = before["agreement"][pair]
    for run in trained.values():
        del run["losses"]
    runs = {setting: run for setting in SETTINGS if (run := trained.get(setting) or before["runs"].get(setting))}
    draw(runs, args.picture)
    result = {"curves_are_means_over_steps": MEAN_OVER, "agreement": agreement, "runs": runs}
    args.json.write_text(json.dumps(result, indent=1) + "\n")

    print(describe(env))
    print(as_table(runs))
    print(agreement_text(agreement))


if __name__ == "__main__":
    main()
