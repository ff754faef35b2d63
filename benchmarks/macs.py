"""Count RevBiFPN's multiply-accumulates at each variant's image size: torch's counter, and the published rules.

    python -m benchmarks.macs [--json FILE]

torch's ``FlopCounterMode`` counts convolutions and matrix products alone. The published figures were counted with the
``thop`` package, which adds one operation for each output of a convolution with bias, 2 for each element of a norm's output
and 11 for each output of a bilinear upsampling; with these three rules the counts agree to the last digit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.common import table
from revbifpn.models import VARIANTS, RevBiFPN, Variant

#: Counted by running the published architecture at each variant's image size.
PUBLISHED = {
    "s0": 308_039_716,
    "s1": 616_781_508,
    "s2": 1_370_329_000,
    "s3": 3_330_873_312,
    "s4": 10_632_222_080,
    "s5": 21_848_995_912,
    "s6": 38_084_434_748,
}


# FlopCounterMode counts 2 flops for a multiply-accumulate, so the rules below are doubled too.
def _conv(x_shape: Any, w_shape: Any, bias: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return conv_flop_count(x_shape, w_shape, out_shape) + (2 * out_shape.numel() if bias is not None else 0)


def _norm(x_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * 2 * x_shape.numel()


def _upsample(x_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * 11 * out_shape.numel()


def count_macs(variant: Variant, published_rules: bool = False) -> int:
    """Multiply-accumulates of one image through the classifier in eval mode, by torch's rules or the published ones."""
    aten = torch.ops.aten
    rules: dict[Any, Any] = {}
    if published_rules:
        rules = {
            aten.convolution: _conv,
            aten._native_batch_norm_legit_no_training: _norm,
            aten.native_batch_norm: _norm,
            aten.upsample_bilinear2d: _upsample,
        }
    with torch.device("meta"):
        model = RevBiFPN(variant, reversible=False).eval()
        image = torch.zeros(1, 3, variant.image_size, variant.image_size)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=rules) as counter:
        model(image)
    return int(counter.get_total_flops()) // 2


def as_table(rows: Iterable[Mapping[str, str | int]]) -> str:
    """The counts in Markdown."""
    header = ["model", "image", "MACs, torch's rules", "MACs, published rules", "published"]
    return table(header, ([f"{v:,}" if isinstance(v, int) else v for v in row.values()] for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args()
    rows = []
    for name, variant in VARIANTS.items():
        row: dict[str, str | int] = {
            "model": f"revbifpn_{name}",
            "image_size": variant.image_size,
            "macs_torch": count_macs(variant),
            "macs_published_rules": count_macs(variant, published_rules=True),
            "macs_published": PUBLISHED[name],
        }
        rows.append(row)
    print(as_table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
