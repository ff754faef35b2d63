"""Configs and command lines, spoiled in many ways."""

from __future__ import annotations

import random
from pathlib import Path

from torch import Tensor

from tests.training.fuzzing.conftest import Tools, saved


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
