"""``revbifpn-sparsity``: what a pruned checkpoint holds, its compact form, and whether sparse products pay on this machine.

    revbifpn-sparsity report pruned.safetensors                     densities, FLOPs dense and sparse, bytes
    revbifpn-sparsity report resnet18.pth --model resnet18
    revbifpn-sparsity compact pruned.pth pruned.safetensors         a bit for each zero; this project reads it everywhere
    revbifpn-sparsity expand pruned.safetensors dense.safetensors   for other programs
    revbifpn-sparsity time pruned.safetensors --model revbifpn_s0 --batch-size 1 --threads 1

The last one times CSR against dense, layer by layer. Zeros by themselves make nothing faster (docs/sparsity-pruning.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from revbifpn.models.checkpoints import CheckpointError, read
from revbifpn.sparsity.compact import expand, save_compact
from revbifpn.sparsity.csr import use_csr
from revbifpn.sparsity.report import image_channels, image_side, load_model, report

_NAME = "revbifpn-sparsity"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line's arguments; a wrong one ends the process with exit code 2."""
    parser = argparse.ArgumentParser(prog=_NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    show = commands.add_parser("report", help="densities, FLOPs dense and sparse, bytes")
    show.add_argument("checkpoint", help="a file of weights, or its address")
    show.add_argument("--model", help="timm's name or module:callable (default: a RevBiFPN is found by its shapes)")
    show.add_argument("--image-size", type=_positive, help="side in pixels (default: the model's own)")
    show.add_argument("--raw-weights", action="store_true", help="of a file with EMA weights too, take the others")
    show.add_argument("--json", type=Path, help="write the report into this file too")

    pack = commands.add_parser("compact", help="write a checkpoint in the compact form")
    pack.add_argument("checkpoint", help="a file of weights, or its address")
    pack.add_argument("target", type=Path, help="the .safetensors file to write")
    pack.add_argument("--raw-weights", action="store_true", help="of a file with EMA weights too, take the others")

    full = commands.add_parser("expand", help="write a compact checkpoint as a dense one")
    full.add_argument("checkpoint", type=Path, help="the compact .safetensors file")
    full.add_argument("target", type=Path, help="the .safetensors file to write")
    for command in (pack, full):
        command.add_argument("--overwrite", action="store_true", help="replace a target that exists")

    timed = commands.add_parser("time", help="time CSR against dense, layer by layer, on this machine")
    timed.add_argument("checkpoint", help="a file of weights, or its address")
    timed.add_argument("--model", required=True, help="timm's name or module:callable")
    timed.add_argument("--image-size", type=_positive, help="side in pixels (default: the model's own)")
    timed.add_argument("--batch-size", type=_positive, default=1)
    timed.add_argument("--threads", type=_positive, help="of torch (default: torch's own)")
    timed.add_argument("--repeats", type=_positive, default=30, help="timed calls of each form; the median counts")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for what the user can mend."""
    args = parse_args(arguments)
    commands = {"report": _report, "compact": _compact, "expand": _expand, "time": _time}
    try:
        commands[args.command](args)
    except (FileNotFoundError, ImportError, CheckpointError, ValueError) as error:
        print(f"{_NAME}: {error}", file=sys.stderr)
        return 2
    return 0


def _report(args: argparse.Namespace) -> None:
    result = report(args.checkpoint, args.model, args.image_size, ema=not args.raw_weights)
    print(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result.as_dict(), indent=1) + "\n")


def _compact(args: argparse.Namespace) -> None:
    checkpoint = read(args.checkpoint, ema=not args.raw_weights)
    found = save_compact(checkpoint.state_dict, args.target, overwrite=args.overwrite)
    print(
        f"{args.target}: {len(found.packed)} of {len(checkpoint.state_dict)} tensors are compact; {found.compact:,} bytes "
        f"instead of {found.dense:,} ({100 * found.compact / found.dense:.1f}%); read back and equal"
    )


def _expand(args: argparse.Namespace) -> None:
    expand(args.checkpoint, args.target, overwrite=args.overwrite)
    print(f"{args.target}: dense, read back and equal; {args.target.stat().st_size:,} bytes")


def _time(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    model, _ = load_model(args.model, args.checkpoint)
    side = args.image_size or image_side(model)
    images = torch.randn(args.batch_size, image_channels(model), side, side)
    _, timing = use_csr(model, images, repeats=args.repeats)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {args.batch_size} of {side}x{side}")
    print(timing.table())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
