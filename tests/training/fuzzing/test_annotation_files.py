"""Files in COCO's format, spoiled in many ways."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import DefaultScope

from revbifpn.training import runner as runners
from revbifpn.training.config_files import find_config, read_config
from tests.datasets import coco
from tests.training.fuzzing.conftest import Tools, flipped

FINETUNE = "finetune/mask-rcnn_revbifpn-s0_finetune.py"


#: Put in the place of any value.
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "x",
    "",
    "../../x",
    "\0",
    [],
    {},
    [[]],
    [None],
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested dicts and lists."""
    if path:
        yield path
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield from places(child, (*path, key))


def replaced(node: Any, path: tuple[Any, ...], value: object) -> Any:
    changed = copy.deepcopy(node)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def test_annotation_files(tools: Tools, tmp_path: Path, long: bool) -> None:
    """Files in COCO's format: any value replaced, bits flipped, truncated. What is accepted can be trained with."""
    from mmdet.registry import DATASETS

    chance = random.Random(0)
    folder = tmp_path / "data"
    for split in ("train", "val"):
        coco.write(folder, split, coco.content(split))
    file = folder / "train.json"
    good = file.read_bytes()

    class Dataset:
        """In place of a Runner: reads all samples."""

        def __init__(self, cfg: Any) -> None:
            DefaultScope.get_instance("fuzzing", scope_name="mmdet")
            pipeline = [step for step in cfg.train_dataloader.dataset.pipeline if "Load" in step.type]
            self.dataset: Any = DATASETS.build({**cfg.train_dataloader.dataset, "pipeline": pipeline})

        def train(self) -> None:
            tools.stop(self)

    loaded = read_config(find_config(Path(FINETUNE)))
    tools.monkeypatch.setattr(runners, "build_runner", Dataset)
    tools.monkeypatch.setattr("revbifpn.training.config.read_config", lambda path: copy.deepcopy(loaded))  # it takes a second

    def correct() -> bool:
        samples = [tools.built.dataset[index] for index in range(len(tools.built.dataset))]
        return bool(samples) and all(len(s["gt_bboxes"]) == len(s["gt_bboxes_labels"]) for s in samples)

    def try_file(case: str, content: bytes) -> None:
        file.write_bytes(content)
        drop = ["--drop-bad"] if chance.random() < 0.5 else []
        options = ["--from-scratch", "--data", folder, "--work-dir", tools.work, *drop]
        tools.check(f"{case} {drop}", "train", FINETUNE, *options, correct=correct)

    try_file("good", good)
    assert tools.built is not None, tools.said
    content = coco.content("train")
    everywhere = list(places(content))
    for _ in range(300 if long else 36):
        place, value = chance.choice(everywhere), chance.choice(WRONG)
        try_file(f"{place} = {value!r}", json.dumps(replaced(content, place, value)).encode())
    for _ in range(10):
        position, bit = chance.randrange(len(good)), chance.randrange(8)
        try_file(f"bit {bit} of byte {position}", flipped(good, position, bit))
    for part in range(10):
        try_file(f"truncated to {part}/10", good[: part * len(good) // 10])
    try_file("a deep nest", b"[" * 100_000)
    try_file("a long number", b'{"images": ' + b"9" * 10_000 + b"}")
    tools.done(50)
