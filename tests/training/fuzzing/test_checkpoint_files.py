"""Files of weights, spoiled in many ways."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.training.fuzzing.conftest import Tools, flipped, saved


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
