"""One of the processes that the ``launch`` fixture starts: it goes through the cases that come in."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from revbifpn.reversible import ExactReversalWarning


def main() -> None:
    """A case ``"ddp.overlap"`` is the function ``overlap`` of ``_ddp.py``; each has a process group of its own."""
    folder, rank, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    for number, line in enumerate(sys.stdin):
        name, options = json.loads(line)
        module, function = name.split(".")
        store, timeout = f"file://{folder}/store{number}", timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=timeout)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ExactReversalWarning)
            getattr(importlib.import_module(f"tests.distributed._{module}"), function)(**options)
        dist.destroy_process_group()
        (folder / f"done{number}-{rank}").touch()


if __name__ == "__main__":
    main()
