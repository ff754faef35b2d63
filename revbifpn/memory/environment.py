"""What every figure is reported with: processor, versions, date."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

import revbifpn


def environment() -> dict[str, Any]:
    """Collect the processor and its vector instructions, the threads, the versions and the date."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "revbifpn": revbifpn.__version__,
        "python": platform.python_version(),
    }


def describe(env: Mapping[str, Any]) -> str:
    """Return the environment in one line."""
    threads = f"{env['threads']} thread{'' if env['threads'] == 1 else 's'}"
    device = env["gpu"] or f"{env['cpu']} ({env['instructions']}), {threads}"
    return f"{device}; torch {env['torch']}, timm {env['timm']}, Python {env['python']}; {env['date']}"


def describe_environment() -> str:
    """Describe this machine and these versions in one line."""
    return describe(environment())
