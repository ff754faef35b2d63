"""Convert a RevBiFPN checkpoint: a published file to safetensors in this project's key layout, and back; verify the result.

SOURCE is a published file, one that a training wrote (of a detector its backbone is taken), or a .safetensors file. TARGET is
read back and compared tensor by tensor before it gets its name.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from revbifpn.models import PUBLISHED, CheckpointError, RevBiFPN, RevBiFPNPyramid, read_checkpoint
from revbifpn.models.checkpoints import check_state_dict, find_variant
from revbifpn.models.published_layout import to_published_layout

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the checkpoint to read")
    parser.add_argument(
        "target", type=Path, help="the file to write; its suffix says the format: .safetensors, or .pth, .pth.tar"
    )
    parser.add_argument(
        "--layout", choices=("own", "published"), default="own", help="key layout of the target (default: own)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a target that exists")
    args = parser.parse_args()
    if args.target.suffix not in SUFFIXES:
        parser.error(f"argument target: {args.target} must end in one of {', '.join(SUFFIXES)}")
    return args


def check_model(state_dict: dict[str, Tensor], source: Path) -> str:
    """Check that the weights are those of a whole model, and say which.

    Raises:
        CheckpointError: if they are not.
    """
    variant = find_variant(state_dict)
    if variant is None:
        raise CheckpointError(f"{source} holds no weights of a RevBiFPN: no variant has such keys and shapes")
    stem, classifier = state_dict.get("stem.weight"), state_dict.get("head.fc.weight")
    in_chans = 3 if stem is None else stem.shape[1]
    with torch.device("meta"):
        if any(key.startswith("head.") for key in state_dict):
            num_classes = 0 if classifier is None else classifier.shape[0]
            check_state_dict(RevBiFPN(variant, num_classes, in_chans), state_dict, str(source))
            return f"RevBiFPN-{variant}, classifier of {num_classes} classes"
        check_state_dict(RevBiFPNPyramid(variant, in_chans), state_dict, str(source))
        return f"RevBiFPN-{variant}, body and neck"


def write(state_dict: dict[str, Tensor], target: Path, layout: str) -> None:
    """Write the weights beside the target, read them back, compare, and give them the target's name.

    Raises:
        CheckpointError: if what was read back differs; nothing is left then.
    """
    content = to_published_layout(state_dict) if layout == "published" else state_dict
    content = {key: value.detach().cpu().contiguous() for key, value in content.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        if target.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(content, draft, metadata={"format": "pt"})
        else:
            torch.save(content, draft)
        again = read_checkpoint(draft)
        wrong = [key for key, value in state_dict.items() if key not in again or not is_same(again[key], value)]
        if wrong or len(again) != len(state_dict):
            raise CheckpointError(f"{target} was not written as it should be: {wrong or sorted(again)} differ")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def is_same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    args = parse_args()
    if args.target.exists() and not args.overwrite:
        raise CheckpointError(f"{args.target} exists: choose another name, or replace it with --overwrite")
    state_dict = read_checkpoint(args.source)
    what = check_model(state_dict, args.source)
    digest = sha256_of(args.source)
    known = [f"revbifpn_{name}" for name, weights in PUBLISHED.items() if weights.sha256 == digest]
    write(state_dict, args.target, args.layout)
    numbers = sum(value.numel() for value in state_dict.values())
    print(f"{args.source}: {what}; {len(state_dict)} tensors, {numbers:,} numbers; sha256 {digest}")
    print(f"  this is the published file of {known[0]}" if known else "  this is none of the published files, by its sha256")
    print(f"{args.target}: {args.layout} layout, read back and equal; sha256 {sha256_of(args.target)}")


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ImportError, CheckpointError) as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)
        sys.exit(2)
