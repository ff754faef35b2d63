"""Sparse training measured: accuracy at equal operations, sparse pre-training, memory, operations of the recipes, pictures.

    python -m benchmarks.sparse_training [--parts wide spdf memory recipe] [--source FOLDER] [--json FILE] [--pictures FOLDER]

- ``wide``: a small ResNet on Fashion-MNIST, dense and Sparse-Wide for 50, 75 and 90% zeros at equal operations, with static,
  SET and RigL masks, several seeds each;
- ``spdf``: dense and sparse pre-training on five of its classes, then dense fine-tuning on few images of the other five;
- ``memory``: what training RevBiFPN-S0 and ResNet-18 takes, Sparse-Wide for 0 to 90%, predicted for CUDA on fake tensors;
- ``recipe``: operations of the two phases of ``configs/sparse``, beside dense.

The pictures are of ``memory``, and of Sparse-IFT's transformations, which needs no measurement. Fashion-MNIST's four files are
those of Debian's package dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from benchmarks import sparse_plots, sparse_trials
from benchmarks.common import describe, environment, peak_alone, table, update_json
from revbifpn.models import VARIANTS, RevBiFPN, RevBiFPNPyramid
from revbifpn.reversible import set_reversible
from revbifpn.sparsity import count_flops, select_weights, sparse_ift, training_flops

PARTS = ("wide", "spdf", "memory", "recipe")
GPU = "cuda"
SPARSITIES = (0.0, 0.5, 0.75, 0.9)
STAGES = (2, 4, 8, 16)
MODES = {"revbifpn_s0": ("stored", "reversible"), "resnet18": ("stored", "checkpointed")}
IMAGENET, COCO = 1_281_167, 117_266  # training images; of COCO those with an object
EPOCHS = {"pre-training": 450, "fine-tuning": 12}
COCO_SIZE = (1, 3, 800, 1344)


def set_mode(model: nn.Module, mode: str) -> nn.Module:
    """Let a network keep its activations or not."""
    if isinstance(model, RevBiFPN):
        return set_reversible(model, mode == "reversible")
    model.set_grad_checkpointing(mode == "checkpointed")  # type: ignore[operator]
    return model


def memory(batch: int, side: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Bytes of activations at their peak, and of weights and masks, by sparsity and by depth."""
    images = torch.empty(batch, 3, side, side, device="meta")
    rows: list[dict[str, Any]] = []
    for name, modes in MODES.items():
        for sparsity in SPARSITIES:
            ift = sparse_ift(timm.create_model(name), "wide", sparsity, (3, 224, 224))
            parameters = sum(p.numel() for p in ift.model.parameters())
            masked = sum(w.numel() for w in select_weights(ift.model, ift.dense).values()) if sparsity else 0
            for mode in modes:
                model = set_mode(ift.model.train(), mode)
                row: dict[str, Any] = {
                    "network": name,
                    "sparsity": sparsity,
                    "mode": mode,
                    "zeros": ift.sparsity,
                    "parameters": parameters,
                }
                # Weights, gradients and momentum in float32, and a byte for each entry of a mask.
                row |= {"activations": peak_alone(model, images, GPU, "predict"), "weights": 12 * parameters + masked}
                rows.append(row)
                progress(f"{name} {sparsity} {mode}: {row['activations'] / 1e6:.0f} MB")
    depth: dict[str, list[int]] = {}
    for stages in STAGES:
        dense = RevBiFPN(replace(VARIANTS["s0"], num_ext_layers=stages))
        wide = sparse_ift(dense, "wide", 0.75).model.train()
        for mode in MODES["revbifpn_s0"]:
            peak = peak_alone(set_mode(wide, mode), images, GPU, "predict")
            depth.setdefault(mode, []).append(peak)
            progress(f"{stages} extension stages, {mode}: {peak / 1e6:.0f} MB")
    return {"batch": batch, "side": side, "rows": rows, "stages": list(STAGES), "depth": depth}


def recipe() -> dict[str, Any]:
    """Operations of pre-training S0 on ImageNet and of fine-tuning its body and neck on COCO, dense or sparse before."""
    with torch.device("meta"):
        classifier, backbone = RevBiFPN("s0"), RevBiFPNPyramid("s0")
    flops = count_flops(classifier, (1, 3, 224, 224))
    fine = count_flops(backbone, COCO_SIZE).total
    tuning = training_flops(fine, fine, EPOCHS["fine-tuning"] * COCO)
    rows = []
    for sparsity in (0.0, 0.5, 0.75):
        kept = flops.sparse(dict.fromkeys(select_weights(classifier), 1 - sparsity))
        before = training_flops(flops.total, kept, EPOCHS["pre-training"] * IMAGENET)
        rows.append({"sparsity": sparsity, "forward_flops": kept, "pre_training": before, "fine_tuning": tuning})
    return {"rows": rows}


def memory_table(content: Mapping[str, Any]) -> str:
    """Memory by sparsity in Markdown."""
    lines = []
    for row in content["rows"]:
        dense = next(
            r for r in content["rows"] if (r["network"], r["mode"], r["sparsity"]) == (row["network"], row["mode"], 0)
        )
        lines.append(
            [
                f"{row['network']}, {row['mode']}",
                "dense" if not row["sparsity"] else f"wide for {row['sparsity']:.0%}",
                f"{row['parameters'] / 1e6:.1f}",
                f"{row['weights'] / 1e6:.0f}",
                f"{row['activations'] / 1e6:.0f}",
                f"{row['activations'] / dense['activations']:.2f}",
            ]
        )
    header = [
        f"network, mode ({content['batch']} images of {content['side']}x{content['side']})",
        "form",
        "parameters, millions",
        "weights, gradients, momentum, masks, MB",
        "activations, MB",
        "activations / dense",
    ]
    return table(header, lines)


def depth_table(content: Mapping[str, Any]) -> str:
    """Memory by depth of the wide network in Markdown."""
    lines = [[mode, *(f"{peak / 1e6:.0f}" for peak in peaks)] for mode, peaks in content["depth"].items()]
    return table(["MB of activations, S0 wide for 75%, extension stages:", *content["stages"]], lines)


def recipe_table(content: Mapping[str, Any]) -> str:
    """Operations of the recipes in Markdown."""
    dense = content["rows"][0]
    total = dense["pre_training"] + dense["fine_tuning"]
    lines = [
        [
            f"{row['sparsity']:.0%}" if row["sparsity"] else "dense",
            f"{row['forward_flops'] / 1e9:.3f}",
            f"{row['pre_training'] / 1e18:.3f}",
            f"{row['fine_tuning'] / 1e18:.3f}",
            f"{row['pre_training'] / dense['pre_training']:.2f}",
            f"{(row['pre_training'] + row['fine_tuning']) / total:.2f}",
        ]
        for row in content["rows"]
    ]
    header = [
        "zeros in pre-training",
        "forward, 10^9 an image",
        "pre-training, 10^18",
        "fine-tuning (dense), 10^18",
        "pre-training / dense",
        "both phases / dense",
    ]
    return table(header, lines)


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "wide": sparse_trials.wide_table,
    "spdf": sparse_trials.spdf_table,
    "memory": lambda content: f"{memory_table(content)}\n\n{depth_table(content)}",
    "recipe": recipe_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder with the four *-ubyte.gz files"
    )
    parser.add_argument("--images", type=int, default=6000, help="of the training images, the first so many")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=4, help="of the small ResNet's first block")
    parser.add_argument("--batch", type=int, default=32, help="of the memory's step")
    parser.add_argument("--side", type=int, default=224, help="of its images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here, beside those that are there")
    parser.add_argument("--pictures", type=Path, help="draw into this folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    env = environment()
    print(describe(env))
    results: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {}
    data = sparse_trials.read_images(args.source, args.images) if {"wide", "spdf"} & set(args.parts) else None
    for part in args.parts:
        print(f"\n{part}", flush=True)
        if part in ("wide", "spdf"):
            assert data is not None
            trials = sparse_trials.wide_trials if part == "wide" else sparse_trials.spdf_trials
            result = trials(data, args.width, args.epochs, args.seeds, _say)
        else:
            result = memory(args.batch, args.side, _say) if part == "memory" else recipe()
        print(TABLES[part](result))
        results[part] = {"environment": env, **result}
        if args.json is not None:
            update_json(args.json, {part: results[part]})
    if args.pictures is not None:
        print(f"\n{sparse_plots.draw_transformations(args.pictures / 'sparse_ift.png')}")
        if "memory" in results:
            print(sparse_plots.draw_memory(results["memory"], args.pictures / "sparse_memory.png"))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
