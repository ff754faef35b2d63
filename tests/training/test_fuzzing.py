"""What comes from outside, spoiled in many ways: one line and exit status 2, or a correct result; nothing run or written.

Each test runs the command lines in this process on all of its cases and lists those that fail. Trainings and tests end where
they would begin to compute.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from torch import Tensor

import revbifpn.training.cli.test
import revbifpn.training.cli.train
from revbifpn.training import runner as runners
from revbifpn.training.config_files import find_config, read_config
from tests.datasets import coco
from tests.training.classification.conftest import write_config

MODEL, CLASSES = "test_resnet", 3
FINETUNE = "finetune/mask-rcnn_revbifpn-s0_finetune.py"
MAINS = {"train": revbifpn.training.cli.train.main, "test": revbifpn.training.cli.test.main}


class Tools:
    """Runs the command lines in this process.

    Attributes:
        built: the Runner that the last one would have trained or tested with; None if it came to no such thing.
        said: what it said on stderr.
        cases: how many were run.
        failures: what was wrong, case by case.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.monkeypatch, self.capsys, self.folder = monkeypatch, capsys, folder
        self.work, self.trace = folder / "work", folder / "executed"
        self.built: Any = None
        self.said = ""
        self.cases = 0
        self.failures: list[str] = []

    def stop(self, runner: Any) -> dict[str, float]:
        self.built = runner
        return {}

    def check(self, case: str, tool: str, *arguments: object, correct: Callable[[], object] = lambda: True) -> None:
        """Run a command line; ``correct()`` judges what it has built, if it is not refused."""
        for kind in (Visualizer, MMLogger, MessageHub, DefaultScope):
            kind._instance_dict.clear()
        before = self.files()
        self.built = None
        self.cases += 1
        self.monkeypatch.setattr(sys, "argv", [f"revbifpn-{tool}", *map(str, arguments)])
        self.capsys.readouterr()
        status: object = 0
        try:
            MAINS[tool]()
        except SystemExit as stop:
            status = stop.code
        except Exception as error:
            self.failures.append(f"{case}: {type(error).__name__}: {str(error)[:300]}")
            return
        self.said = said = self.capsys.readouterr().err
        if status == 0:
            if self.built is None or not correct():
                self.failures.append(f"{case}: accepted, with a wrong result")
        elif status != 2:
            self.failures.append(f"{case}: exit status {status}: {said[-300:]}")
        else:
            lines = [line for line in said.splitlines() if line.startswith((f"{tool}: ", f"revbifpn-{tool}: error: "))]
            if len(lines) != 1 or "Traceback" in said or len(lines[0]) < len(tool) + 12:
                self.failures.append(f"{case}: said {said[-300:]!r}")
        if self.files() != before:
            self.failures.append(f"{case}: wrote {self.files() ^ before}")

    def files(self) -> set[tuple[str, int]]:
        """All files with their times, but for the work folder's."""
        found = (path for path in self.folder.rglob("*") if self.work not in path.parents and path != self.work)
        return {(str(path), path.stat().st_mtime_ns) for path in found}

    def done(self, least: int) -> None:
        assert not self.trace.exists(), "something was executed"
        assert not self.failures, "\n".join([f"{len(self.failures)} of {self.cases}:", *self.failures])
        assert self.cases >= least


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Tools:
    tools = Tools(monkeypatch, capsys, tmp_path)
    for method in ("train", "test"):
        monkeypatch.setattr(runners.SafeRunner, method, lambda runner: tools.stop(runner))
    monkeypatch.chdir(tmp_path)  # what is written without a folder's name is seen
    return tools


@pytest.fixture
def config(own_folder: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.py", own_folder, tmp_path / "work", MODEL, "visualizer = dict(vis_backends=[])")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = timm.create_model(MODEL, num_classes=CLASSES).state_dict()
    return state


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def flipped(content: bytes, position: int, bit: int) -> bytes:
    spoiled = bytearray(content)
    spoiled[position] ^= 1 << bit
    return bytes(spoiled)


def regions(archive: bytes) -> dict[str, range]:
    """Where each kind of byte lies in a file of ``torch.save``."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        records = {info.filename.partition("/")[2]: info for info in file.infolist()}
        start = file.start_dir

    def content(name: str) -> range:
        info = records[name]
        name_length, extra = struct.unpack_from("<HH", archive, info.header_offset + 26)
        first = info.header_offset + 30 + name_length + extra
        return range(first, first + info.file_size)

    largest = max((name for name in records if name.startswith("data/")), key=lambda name: records[name].file_size)
    pickle = content("data.pkl")
    return {
        "first header": range(records["data.pkl"].header_offset, pickle.start),
        "pickle": pickle,
        "tensor": content(largest),
        "header of a tensor": range(records[largest].header_offset, content(largest).start),
        "directory": range(start, len(archive) - 22),
        "end": range(len(archive) - 22, len(archive)),
    }


def rewritten(archive: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same archive with other records and right checksums."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target.getvalue()


class Names:
    """Unpickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def hostile(weights: dict[str, Tensor], trace: Path) -> dict[str, object]:
    """Contents that do not belong into a checkpoint."""
    first, value = next(iter(weights.items()))
    touch = f"open({str(trace)!r}, 'w')"
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested]
    return {
        "os.system": {**weights, "extra": Names(os.system, f"touch {trace}")},
        "eval": {**weights, "extra": Names(eval, touch)},
        "exec beside": {"state_dict": weights, "args": Names(exec, touch)},
        "Path.touch": {"state_dict": weights, "args": Names(Path.touch, trace)},
        "getattr": {"state_dict": weights, "args": Names(getattr, "x", "join")},
        "import": Names(__import__, "antigravity"),
        "keys of numbers": {1: value, 2: value},
        "a key of bytes": {**weights, b"x": value},
        "a key of a tuple": {**weights, ("a", 1): value},
        "None for a tensor": {**weights, first: None},
        "a text for a tensor": {**weights, first: "x" * 1000},
        "a number": 3,
        "nothing": None,
        "an empty dict": {},
        "an empty state dict": {"state_dict": {}},
        "a list": [weights],
        "a nest": {"state_dict": nested},
        "weights within weights": {"state_dict": {"state_dict": weights}},
        "another shape": {**weights, first: value[:1]},
        "a huge expanded tensor": {**weights, first: torch.zeros(1).expand(10**9, 1, 1, 1)},
        "a sparse tensor": {**weights, first: value.to_sparse()},
        "a complex tensor": {**weights, first: value.to(torch.complex64)},
        "a quantized tensor": {**weights, first: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)},
        "a tensor of truth values": {**weights, first: value > 0},
        "NaN": {**weights, first: value * float("nan")},
        "infinity": {**weights, first: value / 0},
        "too few": dict(list(weights.items())[5:]),
        "too many": {**weights, "more.weight": value},
        "keys like the published ones": {f"rev_stack.{key}": tensor for key, tensor in weights.items()},
        "an average of nothing": {"state_dict": weights, "state_dict_ema": {}},
        "meta that is none": {"state_dict": weights, "meta": 3},
    }


def test_checkpoints(tools: Tools, config: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Files of torch.save and their older form: each kind of byte, truncation, bombs, and contents of all sorts."""
    chance = random.Random(0)
    good, old = saved({"state_dict": weights}), saved({"state_dict": weights}, _use_new_zipfile_serialization=False)

    def correct() -> bool:
        found = tools.built.model.backbone.state_dict()
        return all(torch.equal(value, weights[key]) for key, value in found.items())

    def try_file(case: str, content: bytes, judge: Callable[[], object] = correct, suffix: str = ".pth") -> None:
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        tools.check(case, "test", config, path, correct=judge)

    for name, content in (("good", good), ("old", old)):
        try_file(name, content)
        assert tools.built is not None, tools.said
    for name, region in regions(good).items():
        for _ in range(5):
            position, bit = chance.choice(region), chance.randrange(8)
            try_file(f"bit {bit} of byte {position} ({name})", flipped(good, position, bit))
    for part in range(50):
        length = part * len(good) // 50
        try_file(f"truncated to {length} bytes", good[:length])
    for part in range(5):
        try_file(f"old form, truncated to {part}/5", old[: part * len(old) // 5])

    def some_result() -> bool:  # its checksums are right, so nobody can know what was meant
        return all(bool(value.isfinite().all()) for value in tools.built.model.state_dict().values())

    pickle = regions(good)["pickle"]
    for _ in range(25):
        position, bit = chance.randrange(len(pickle)), chance.randrange(8)

        def change(name: str, content: bytes, position: int = position, bit: int = bit) -> bytes:
            return flipped(content, position, bit) if name.endswith("data.pkl") else content

        try_file(f"bit {bit} of byte {position} of the pickle, with a right checksum", rewritten(good, change), some_result)
    for _ in range(10):
        position, bit = chance.randrange(2000), chance.randrange(8)
        try_file(f"old form, bit {bit} of byte {position}", flipped(old, position, bit), some_result)
    for name, content in hostile(weights, tools.trace).items():
        try_file(f"holds {name}", saved(content), (lambda: False) if name in MUST_BE_REFUSED else some_result)
    tools.done(150)


#: Of :func:`hostile`, what is no state dict of the model whichever way one looks at it.
MUST_BE_REFUSED = {
    "os.system",
    "eval",
    "import",
    "NaN",
    "infinity",
    "too few",
    "too many",
    "another shape",
    "None for a tensor",
}


def test_bombs(tools: Tools, config: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Archives that grow when they are read are refused before they do."""
    good = saved({"state_dict": weights})
    path = tmp_path / "weights.pth"
    size = 2**29

    def bomb(name: str, content: bytes) -> bytes:
        return bytes(size) if name.endswith("data/0") else content

    path.write_bytes(rewritten(good, bomb, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < size / 100
    reads = []
    tools.monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, name, *args, **kwargs: reads.append(name))
    tools.check("bomb", "test", config, path, correct=lambda: False)
    assert not reads
    tools.done(1)


def test_safetensors(tools: Tools, config: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Headers that lie about what follows."""
    from safetensors.torch import save

    good = save(weights)
    length = struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    first, second = [name for name in header if name != "__metadata__"][:2]
    path = tmp_path / "weights.safetensors"

    def try_file(case: str, content: bytes, accepted: bool = False) -> None:
        path.write_bytes(content)
        tools.check(case, "test", config, path, correct=lambda: accepted)

    def packed(changed: Any, announced: int | None = None) -> bytes:
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text) if announced is None else announced) + text + data

    def with_first(**changes: Any) -> dict[str, Any]:
        return {**header, first: {**header[first], **changes}}

    try_file("good", good, accepted=True)
    assert tools.built is not None, tools.said
    for announced in (0, 1, length // 2, 2**31, 2**63, 2**64 - 1):
        try_file(f"announces a header of {announced} bytes", packed(header, announced))
    lies: dict[str, Any] = {
        "no object": [],
        "nothing": {},
        "no name": {k: v for k, v in header.items() if k != first},
        "another's data": with_first(data_offsets=header[second]["data_offsets"]),
        "data beyond the end": with_first(data_offsets=[0, 2**40]),
        "data that ends before it begins": with_first(data_offsets=[100, 0]),
        "data of a negative place": with_first(data_offsets=[-4, 0]),
        "no places": with_first(data_offsets=[]),
        "a huge shape": with_first(shape=[2**40, 2**40]),
        "a negative shape": with_first(shape=[-1, 3]),
        "a shape of texts": with_first(shape=["3"]),
        "another shape": with_first(shape=[1]),
        "an unknown type": with_first(dtype="F128"),
        "a type of half the size": with_first(dtype="F16"),
        "a type that is a number": with_first(dtype=3),
        "metadata of numbers": {**header, "__metadata__": {"x": 3}},
        "a name that is a path": {**header, f"../{first}": header[first]},
    }
    for name, changed in lies.items():
        try_file(f"header with {name}", packed(changed))
    for part in range(10):
        try_file(f"truncated to {part}/10", good[: part * len(good) // 10])
    tools.done(30)


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


def test_configs(tools: Tools, config: Path, tmp_path: Path) -> None:
    """Any setting with a value of another type, or none at all; texts that are cut off or have a wrong character."""
    chance = random.Random(0)
    good = config.read_text()
    faulty = tmp_path / "faulty.py"
    settings = [line.partition(" =")[0] for line in good.splitlines() if line and line[0].isalpha() and " =" in line]
    assert len(settings) > 15

    def try_text(case: str, text: str) -> None:
        faulty.write_text(text)
        tools.check(case, "train", faulty, "--work-dir", tools.work)

    try_text("good", good)
    assert tools.built is not None, tools.said
    for name in settings:
        for value in chance.sample(["None", "3", "'x'", "[]", "{}", "dict(type='Nothing')", "dict(type=3)", "[3]"], 2):
            try_text(f"{name} = {value}", f"{good}\n{name} = {value}\n")
        try_text(f"del {name}", f"{good}\ndel {name}\n")
    for part in range(15):
        try_text(f"cut off after {part}/15", good[: part * len(good) // 15])
    for _ in range(25):
        position = chance.randrange(len(good))
        character = chance.choice("()[]{}=,.'\"\\\0\n #x0")
        try_text(f"{character!r} at {position}", f"{good[:position]}{character}{good[position + 1 :]}")
    for case, text in {
        "raises": "raise RuntimeError('x')",
        "exits": "import sys; sys.exit(0)",
        "based on itself": '_base_ = "faulty.py"',
        "deep": "x = " + "[" * 1000 + "]" * 1000,
        "empty": "",
    }.items():
        try_text(case, text)
    tools.done(90)


def test_command_lines(tools: Tools, config: Path, weights: dict[str, Tensor], tmp_path: Path, long: bool) -> None:
    chance = random.Random(0)
    good = tmp_path / "weights.pth"
    good.write_bytes(saved(weights))
    texts = [
        "",
        " ",
        "x",
        "-1",
        "0",
        "1e999",
        "nan",
        "None",
        "[",
        "a=b",
        "=",
        "..",
        "/",
        str(tmp_path),
        "\n",
        "é" * 5,
        "x" * 300,
    ]
    texts = texts if long else ["", "x", "-1", "nan", "[", "a=b", "/", "\0", "x" * 300]
    options: dict[str, list[str]] = {
        "train": ["--resume", "--activation-budget", "--data", "--work-dir", "--launcher", "--cfg-options", "--val-images"],
        "test": ["--show-dir", "--data", "--work-dir", "--launcher", "--cfg-options", "--val-annotations"],
    }
    safe = {"--work-dir", "--show-dir"}  # folders of any name are made
    for tool, names in options.items():
        begin: list[object] = [config, good] if tool == "test" else [config]
        for name in names:
            for text in texts if name not in safe else ["", str(config), f"{config}/x", "/proc/x"]:
                work = [] if name == "--work-dir" else ["--work-dir", tools.work]
                tools.check(f"{tool} {name} {text!r}", tool, *begin, *work, name, text)
        for text in texts:
            tools.check(f"{tool} {text!r} for a config", tool, text, *begin[1:], "--work-dir", tools.work)
        words = [*(name for name in names if name not in safe), *texts, "--amp", "--from-scratch", "--boxes-only"]
        for _ in range(10):
            junk = chance.sample(words, 4)
            tools.check(f"{tool} {junk}", tool, *begin, "--work-dir", tools.work, *junk)
    for text in texts:
        tools.check(f"test {text!r} for a checkpoint", "test", config, text, "--work-dir", tools.work)
    keys = (
        "model",
        "model.num_classes",
        "train_dataloader.batch_size",
        "optim_wrapper.optimizer.lr",
        "default_hooks.x",
        "zzz",
    )
    for key in keys:
        for text in ("", "x", "[1,2", "-1", "None", "{}"):
            tools.check(f"{key}={text}", "train", config, "--work-dir", tools.work, "--cfg-options", f"{key}={text}")
    tools.done(120)
