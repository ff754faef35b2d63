"""The whole demo: make the data, train RevBiFPN-S0 in Mask R-CNN on it, evaluate, draw what it finds and what memory it took.

It takes minutes on 2 CPU cores.

It trains from scratch each time, unless --resume goes on from the newest checkpoint; data that is there is kept. The exit
status is 1 if the box AP50 that is reached is under --min-box-ap50.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
CONFIG = TOOLS.parent / "configs/demo/mask-rcnn_revbifpn-s0_hrfpn_demo-digits.py"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("work_dirs/demo"),
        help="for checkpoints, logs and pictures, from the repository's root",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the work folder, if any")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the images (default: 0)")
    parser.add_argument("--json", type=Path, help="write what was reached here, with processor and versions")
    parser.add_argument("--min-box-ap50", type=float, default=0.60, help="box AP50 to reach (default: %(default)s)")
    return parser.parse_args()


def say(text: str) -> None:
    print(f"\n==> {text}", flush=True)


def run(tool: str, *arguments: str | Path) -> None:
    """Run another tool, its output passed through; ends the program with its status if it fails."""
    # OpenMP threads that wait by spinning steal the time of other programs' and then of each other; asleep at once, they
    # wake too late. A short spin was fastest alone and bearable in company.
    environment = {"GOMP_SPINCOUNT": "10000"} | os.environ
    status = subprocess.run([sys.executable, TOOLS / tool, *arguments], env=environment).returncode
    if status:
        sys.exit(f"demo: tools/{tool} failed with status {status}; its message is above")


def draw_predictions(checkpoint: Path, work_dir: Path) -> int:
    """Predictions beside the truth of the first validation images, and a sheet of them; returns how many images there are."""
    from revbifpn.training.config import load_config
    from revbifpn.training.detection import drawing
    from revbifpn.training.detection.predict import load_detector

    cfg = load_config(CONFIG)
    files = drawing.draw_predictions(cfg, load_detector(cfg, str(checkpoint), "cpu"), work_dir / "images")
    drawing.contact_sheet(files, work_dir / "predictions.png")
    return len(json.loads(Path(cfg.test_evaluator.ann_file).read_text())["images"])


def draw_memory(path: Path) -> None:
    """The memory of one training step, with activations stored and rebuilt, as the allocator of this machine has it."""
    from revbifpn.datasets.demo_digits import DemoDataParameters
    from revbifpn.memory.configs import ConfigSubject
    from revbifpn.memory.plots import plot_timelines
    from revbifpn.memory.steps import Settings, profile_subject

    side = DemoDataParameters().image_size
    subject = ConfigSubject.from_file(str(CONFIG))
    settings = Settings(method="measure")
    reports = [profile_subject(subject, mode, subject.batch, (side, side), settings) for mode in ("stored", "reversible")]
    title = (
        f"Memory of a training step of the demo's Mask R-CNN: {subject.batch} images of {side} x {side}, AdamW, "
        f"{reports[0].method} on a CPU"
    )
    plot_timelines(reports, path, title)


def write_json(path: Path, **reached: float) -> None:
    """Write what was reached, with the environment, for ``python -m benchmarks.readme``."""
    from revbifpn.memory.environment import environment

    path.write_text(json.dumps({"environment": environment(), **reached}, indent=1) + "\n")


def main() -> None:
    args = parse_args()
    json_path = args.json and args.json.resolve()
    begin = time.monotonic()
    os.chdir(TOOLS.parent)  # the config's data folder is relative to it
    say("1/5 Semi-synthetic data")
    run("make_demo_data.py")

    how = "going on from the newest checkpoint, if there is one" if args.resume else "from scratch (--resume goes on instead)"
    say(f"2/5 Training, {how}; eta in the lines below is the time left")
    resume = ["--resume"] if args.resume else []
    seed = ["--cfg-options", f"randomness.seed={args.seed}"]
    run("train.py", CONFIG, "--work-dir", args.work_dir, *resume, *seed)
    checkpoint = Path((args.work_dir / "last_checkpoint").read_text().strip())

    say("3/5 Evaluation on the validation images")
    run("test.py", CONFIG, checkpoint, "--work-dir", args.work_dir)
    metrics = json.loads((args.work_dir / "test/metrics.json").read_text())["metrics"]

    say("4/5 Pictures of predictions")
    images = draw_predictions(checkpoint, args.work_dir)

    say("5/5 Picture of the memory of a training step")
    draw_memory(args.work_dir / "memory.png")

    box, mask = metrics["coco/bbox_mAP_50"], metrics["coco/segm_mAP_50"]
    minutes = (time.monotonic() - begin) / 60
    say(f"Done in {minutes:.1f} minutes: box AP50 {box:.3f}, mask AP50 {mask:.3f}")
    if json_path:
        write_json(json_path, images=images, box_ap50=box, mask_ap50=mask, minutes=minutes)
    print(f"pictures:   {args.work_dir / 'predictions.png'}, {args.work_dir / 'images'}, {args.work_dir / 'memory.png'}")
    print(f"metrics:    {args.work_dir / 'test'}")
    print(f"checkpoint: {checkpoint}")
    print(f"logs:       {args.work_dir}")
    if box < args.min_box_ap50:
        sys.exit(
            f"demo: box AP50 {box:.3f} is under {args.min_box_ap50:.2f}; try another --seed, or train for longer "
            f"(max_iters in {CONFIG.name})"
        )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("demo: interrupted; --resume goes on from the newest checkpoint (one every 50 iterations)")
