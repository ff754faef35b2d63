"""Clips: temporal heads on labels that lie in the order of frames, and training memory against the number of frames.

    python -m benchmarks.clips --parts training memory --json benchmarks/clips.json --pictures docs/images

*training*: moving digits (:mod:`revbifpn.datasets.moving_digits`) are made on the spot, and S0 is trained on them once with
each temporal head, from scratch, with ``tools/train.py`` and ``configs/video``: 16 frames of 32x32, one thread. Clips of all
levels hold the same frames, so mean pooling has to stay at its floor. A head that was finished is not trained again, one that
was interrupted goes on. *memory*: what a clip adds to a training step at 224x224, predicted for a GPU, for 4 to 64 frames.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import describe, environment, table, update_json
from benchmarks.fashion_mnist import MALLOC
from benchmarks.pictures import QUIET, TEXT, Label, new_figure, place_all_labels, plain_numbers, save
from revbifpn.datasets.moving_digits import MovingDigits, make_moving_digits
from revbifpn.memory import profile_training
from revbifpn.memory.sources import ClipSubject
from revbifpn.memory.steps import Settings, profile_subject
from revbifpn.models.clips import TEMPORAL, ClipClassifier

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/video/revbifpn-s0_moving-digits_16f.py"
FRAMES = (4, 8, 16, 32, 64)
SIDE = 224
CHUNK = 16
BATCH, WARMUP = 4, 40  # clips and steps, as in the config
#: Model, mode, and the line's style.
LINES = {
    ("resnet50", "stored"): ("#CC6677", "-"),
    ("resnet50", "checkpointing"): ("#CC6677", "--"),
    ("efficientnet_b0", "stored"): ("#117733", "-"),
    ("efficientnet_b0", "checkpointing"): ("#117733", "--"),
    ("revbifpn_s0", "stored"): ("#0b3c8c", "-"),
    ("revbifpn_s0", "reversible"): ("#0b3c8c", "--"),
    ("revbifpn_s0", "in chunks"): ("#0b3c8c", ":"),
}
HEAD_COLOURS = {"mean": "#CC6677", "shift": "#0b3c8c", "transformer": "#117733"}


def train(
    head: str, data: Path, folder: Path, epochs: int, steps_per_epoch: int, title: str = "", more: Sequence[str] = ()
) -> None:
    """Train with a temporal head in a process of its own, unless its last checkpoint is there.

    Args:
        head: one of :data:`.TEMPORAL`.
        data: clip folder with the column ``speed``.
        folder: for log, curves and checkpoints.
        title: what messages call the training; the head's name if empty.
        more: further settings of the config, ``KEY=VALUE``.
    """
    title = title or head
    if (folder / f"epoch_{epochs}.pth").is_file():
        print(f"{title}: finished before", flush=True)
        return
    steps = epochs * steps_per_epoch
    warmup = min(WARMUP, steps // 2)
    options = [
        f"model.temporal={head}",
        f"train_cfg.max_epochs={epochs}",
        f"param_scheduler.0.end={warmup}",
        f"param_scheduler.1.begin={warmup}",
        f"param_scheduler.1.end={steps}",
        "default_hooks.logger.interval=10",
        "log_processor.window_size=10",
        *more,
    ]
    command = [sys.executable, "tools/train.py", str(CONFIG), "--data", str(data), "--work-dir", str(folder), "--resume"]
    folder.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    print(f"{title}: training", flush=True)
    with (folder / "output.log").open("a") as log:
        arguments = [*command, "--cfg-options", *options]
        done = subprocess.run(arguments, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=variables)
    if done.returncode != 0:
        sys.exit(f"{title}: training failed, see {folder / 'output.log'}")


def read(folder: Path) -> dict[str, Any]:
    """Curves of a finished training: the loss every 10 steps, and the metrics after each epoch."""
    records = [
        json.loads(line) for path in sorted(folder.glob("*/vis_data/scalars.json")) for line in path.read_text().splitlines()
    ]
    losses = {record["step"]: record["loss"] for record in records if "lr" in record}
    scores = {record["step"]: record for record in records if "speed/top1" in record}
    curves = {
        name: [round(scores[epoch][f"speed/{name}"], 4) for epoch in sorted(scores)]
        for name in ("top1", "macro_f1", "kappa", "mae")
    }
    floor = {name: next(iter(scores.values()))[f"speed/floor_{name}"] for name in curves}
    return {"steps": sorted(losses), "loss": [round(losses[step], 4) for step in sorted(losses)], "floor": floor, **curves}


def training(heads: Sequence[str], digits: MovingDigits, epochs: int, work_dir: Path) -> dict[str, Any]:
    """Make the clips, and train each head on them."""
    data = work_dir / f"data_{digits.num_train}"
    make_moving_digits(data, digits)
    runs = {}
    for head in heads:
        begin = time.perf_counter()
        train(head, data, work_dir / head, epochs, digits.num_train // BATCH)
        print(f"{head}: {time.perf_counter() - begin:.0f} s", flush=True)
        runs[head] = read(work_dir / head)
    return {"clips": digits.num_train, "val_clips": digits.num_val, "epochs": epochs, "frames": 16, "side": 32, "runs": runs}


def memory_of(model: str, mode: str, frames: int, side: int) -> float:
    """Bytes that one clip adds to a training step, predicted for a GPU: its pictures, activations and temporaries."""
    if mode == "in chunks":
        classifier = ClipClassifier(model, {"level": 4}, frames=frames, frame_chunk=CHUNK, norm_eval=True)
        clips = torch.empty(1, frames, 3, side, side, device="meta")
        labels = {"level": torch.zeros(1, dtype=torch.long)}

        def loss(logits: Any) -> torch.Tensor:
            return classifier.losses(logits, labels)["level"]

        report = profile_training(classifier, clips, loss=loss, device="cuda")
        if frames <= CHUNK:
            return report.per_sample
        # Gradients of the parameters, which all chunks add to, count as temporaries until the last one is done.
        weights = sum(param.nbytes for param in classifier.parameters())
        return report.peak - report.categories["parameters"] - report.categories["buffers"] - weights
    settings = Settings(optimizer=None, device="cuda")
    return profile_subject(ClipSubject(model, frames), mode, 1, (side, side), settings).per_sample


def memory(lines: Sequence[tuple[str, str]], frames: Sequence[int], side: int) -> dict[str, Any]:
    """Memory of a clip for each line and number of frames."""
    rows = []
    for model, mode in lines:
        found = [memory_of(model, mode, count, side) for count in frames]
        print(f"{model}, {mode}: " + ", ".join(f"{value / 1e6:.0f} MB" for value in found), flush=True)
        rows.append({"model": model, "mode": mode, "bytes": found})
    return {"frames": list(frames), "side": side, "chunk": CHUNK, "rows": rows}


def training_table(content: Mapping[str, Any]) -> str:
    """A row for each head, and the floor."""
    runs = content["runs"]
    floor = next(iter(runs.values()))["floor"]
    names = ("top1", "macro_f1", "kappa", "mae")
    rows = [[head, *(f"{run[name][-1]:.{1 if name == 'top1' else 3}f}" for name in names)] for head, run in runs.items()]
    rows.append(["always the same level", *(f"{floor[name]:.{1 if name == 'top1' else 3}f}" for name in names)])
    return table(["temporal head", "top-1, %", "macro-F1", "quadratic kappa", "MAE"], rows)


def memory_table(content: Mapping[str, Any]) -> str:
    """A row for each model and mode, a column for each number of frames."""
    rows = [
        [f"{row['model']}, {_mode(row['mode'], content['chunk'])}", *(f"{value / 1e6:,.0f}" for value in row["bytes"])]
        for row in content["rows"]
    ]
    return table([f"MB a clip at {content['side']}", *(f"T = {frames}" for frames in content["frames"])], rows)


def _mode(mode: str, chunk: int) -> str:
    return f"reversible, {chunk} frames at a time" if mode == "in chunks" else mode


def draw_training(content: Mapping[str, Any], where: str, path: Path) -> Path:
    """Training loss, and top-1 on the other clips after each epoch."""
    figure = new_figure(10, 4.2)
    title = f"Level in the order of frames alone: {content['clips']} clips of {content['frames']} frames, S0 from scratch"
    figure.suptitle(title, fontsize=12, color=TEXT)
    figure.supxlabel(where, fontsize=8, color=QUIET)
    left, right = figure.subplots(1, 2)
    for head, run in content["runs"].items():
        left.plot(run["steps"], run["loss"], color=HEAD_COLOURS[head], label=head)
        right.plot(range(1, len(run["top1"]) + 1), run["top1"], "o-", color=HEAD_COLOURS[head], label=head)
    right.axhline(run["floor"]["top1"], color=QUIET, linestyle=":", label="always the same level")
    left.set(xlabel="step", ylabel="training loss (CORN)")
    right.set(xlabel="epoch", ylabel="top-1 on the validation clips, %", ylim=(0, 102))
    for axes in (left, right):
        plain_numbers(axes)
        axes.legend(fontsize=8)
    return save(figure, path)


def draw_memory(content: Mapping[str, Any], where: str, path: Path) -> Path:
    """Memory of a clip against the number of its frames, on logarithmic axes."""
    figure = new_figure(8.2, 5.4)
    title = f"Training memory of one clip at {content['side']}x{content['side']}, float32, predicted for a GPU"
    figure.suptitle(title, fontsize=12, color=TEXT)
    figure.supxlabel(where, fontsize=8, color=QUIET)
    axes = figure.subplots()
    labels = []
    for row in content["rows"]:
        colour, style = LINES[row["model"], row["mode"]]
        megabytes = [value / 1e6 for value in row["bytes"]]
        axes.plot(content["frames"], megabytes, style, color=colour, marker="o", markersize=4)
        text = f"{row['model']}, {_mode(row['mode'], content['chunk'])}"
        labels.append(Label(content["frames"][-1], megabytes[-1], text, colour, 8))
    axes.set(xscale="log", yscale="log", xlim=(content["frames"][0] * 0.9, content["frames"][-1] * 5))
    axes.set_xlabel("frames of the clip, T", color=QUIET)
    axes.set_ylabel("MB a clip", color=QUIET)
    plain_numbers(axes)
    axes.set_xticks(content["frames"], [str(frames) for frames in content["frames"]])
    place_all_labels(figure, [labels])
    return save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("training", "memory"), default=["training", "memory"])
    parser.add_argument("--heads", nargs="+", choices=TEMPORAL, default=list(TEMPORAL))
    parser.add_argument("--clips", type=int, default=MovingDigits().num_train, help="to train on (default: %(default)s)")
    parser.add_argument("--val-clips", type=int, default=MovingDigits().num_val, help="to score (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--models", nargs="+", default=list(dict.fromkeys(model for model, _ in LINES)), help="of memory")
    parser.add_argument("--frames", nargs="+", type=int, default=list(FRAMES), help="of memory")
    parser.add_argument("--side", type=int, default=SIDE, help="of the pictures of memory, in pixels")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "work_dirs/clips", help="folder for the clips and trainings")
    parser.add_argument("--json", type=Path, help="write the numbers here, beside those that are there")
    parser.add_argument("--pictures", type=Path, help="folder to draw into")
    args = parser.parse_args()
    env = environment()
    print(describe(env))
    for part in args.parts:
        if part == "training":
            digits = MovingDigits(args.clips, args.val_clips)
            result = training(args.heads, digits, args.epochs, args.work_dir.resolve())
            print(training_table(result))
        else:
            result = memory([line for line in LINES if line[0] in args.models], args.frames, args.side)
            print(memory_table(result))
        if args.json is not None:
            update_json(args.json, {part: {"environment": env, **result}})
        if args.pictures is not None:
            draw = {"training": draw_training, "memory": draw_memory}[part]
            print(f"drawn: {draw(result, describe(env), args.pictures / f'clips_{part}.png')}")


if __name__ == "__main__":
    main()
