"""Trainings that are killed at chosen points and resumed, each in a fork; started by test_kills.py, not by pytest.

Forks share what was imported, and importing is most of a short training's time. The process that forks computes nothing, so
that no thread of torch's is lost in a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.fileio.backends.local_backend import LocalBackend
from mmengine.hooks import Hook
from mmengine.runner import Runner

from revbifpn.training.checkpoints import _checkpoints, _is_usable
from revbifpn.training.cli.train import main as train_main
from revbifpn.training.runner import SafeRunner

TIMEOUT = 150  # seconds for one training
#: What of a checkpoint has to be equal; the rest says when and where it was written.
COMPARED = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers", "random_state")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class Kill(Hook):
    """Kills the process in the middle of a training step, or of a validation.

    Args:
        where: "forward" (before the loss is known), "backward" (some gradients are there), "update" (the weights have
            changed, and neither their average nor the schedule), or "validation" (before an image of it).
        step: the training's iteration from which on that is to happen, or the validation's number; both count from 1.
    """

    priority = "VERY_HIGH"

    def __init__(self, where: str, step: int) -> None:
        self.where, self.step, self.validations = where, step, 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter + 1 != self.step or self.where == "validation":
            return
        if self.where == "forward":
            runner.model.backbone.register_forward_hook(lambda *_: die())
        elif self.where == "backward":
            trained = [parameter for parameter in runner.model.backbone.parameters() if parameter.requires_grad]
            trained[len(trained) // 2].register_post_accumulate_grad_hook(lambda _: die())
        else:
            runner.optim_wrapper.optimizer.register_step_post_hook(lambda *_: die())

    def before_val(self, runner: Runner) -> None:
        self.validations += 1

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.where == "validation" and self.validations == self.step and batch_idx == 1:
            die()


def train(config: str, work_dir: Path, *options: str, kill: dict[str, Any] | None = None) -> None:
    """``revbifpn-train``, killed where ``kill`` says."""
    kill = kill or {"where": "nowhere", "step": 0}
    written = 0
    put, run = LocalBackend.put, SafeRunner.train

    def put_or_die(self: LocalBackend, content: bytes, path: str) -> None:
        nonlocal written
        written += 1
        if kill["where"] == "write" and written == kill["step"]:
            put(self, content[: int(kill["fraction"] * len(content))], path)
            die()
        put(self, content, path)
        (work_dir / "written").write_text(str(written))

    def run_with_hook(self: SafeRunner) -> Any:
        self.register_hook(Kill(kill["where"], kill["step"]))
        return run(self)

    LocalBackend.put, SafeRunner.train = put_or_die, run_with_hook  # type: ignore[method-assign]  # in this fork alone
    sys.argv = ["revbifpn-train", config, "--work-dir", str(work_dir), *options]
    train_main()
    (work_dir / "finished").touch()


def forked(log: Path, function: Callable[[], None]) -> int:
    """Run a function in a fork, its output in a file; return what ``os.waitpid`` says of its end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(TIMEOUT)  # ends the fork, should it hang
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitpid(child, 0)[1]


def differences(ours: Any, theirs: Any, name: str) -> list[str]:
    """Names of what two nested containers differ in, bit for bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [found for key in ours for found in differences(ours[key], theirs[key], f"{name}.{key}")]
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        return [found for i, pair in enumerate(zip(ours, theirs, strict=True)) for found in differences(*pair, f"{name}.{i}")]
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [name]
    return [] if type(ours) is type(theirs) and ours == theirs else [name]


def compare(ours: Path, theirs: Path) -> list[str]:
    first, second = (torch.load(path, weights_only=False) for path in (ours, theirs))
    found = [f"{key} is missing" for key in COMPARED if (key in first) != (key in second)]
    return found + [d for key in COMPARED if key in first and key in second for d in differences(first[key], second[key], key)]


def kill_and_resume(config: str, work_dir: Path, whole: Path, kill: dict[str, Any]) -> dict[str, Any]:
    """What came of a training that was killed, and of going on with it."""
    work_dir.mkdir()
    log = work_dir / "log.txt"
    status = forked(log, lambda: train(config, work_dir, kill=kill))
    found: dict[str, Any] = {
        "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        "finished": (work_dir / "finished").exists(),
        "written": int((work_dir / "written").read_text()) if (work_dir / "written").exists() else 0,
        "usable": [path.name for path in _checkpoints(work_dir) if _is_usable(path)],
    }
    found["resumed"] = forked(log, lambda: train(config, work_dir, "--resume"))
    found["log"] = log.read_text()
    if found["resumed"] == 0:
        found["different"] = compare(_checkpoints(work_dir)[0], whole)
        found["last"] = _checkpoints(work_dir)[0].name
    return found


def main() -> None:
    """Read ``trainings.json`` of a folder: for each name a config and kills; write ``results.json``."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, training in json.loads((folder / "trainings.json").read_text()).items():
        whole = folder / f"{name}-whole"
        whole.mkdir()
        status = forked(whole / "log.txt", lambda: train(training["config"], whole))  # noqa: B023  (runs at once)
        if status:
            sys.exit((whole / "log.txt").read_text()[-5000:])
        last = _checkpoints(whole)[0]
        results[name] = [
            kill_and_resume(training["config"], folder / f"{name}-{index}", last, kill)
            for index, kill in enumerate(training["kills"])
        ]
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
