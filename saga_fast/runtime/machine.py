"""Facts about the machine and the code that figures are written down with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from saga_fast.runtime.address import redact

PACKAGES = (
    *("torch", "torchvision", "triton", "timm", "numba", "numpy", "pillow"),
    *("simplejpeg", "ffcv", "nvidia-dali-cuda130", "grad-cam"),
)


def hardware() -> dict[str, Any]:
    """CPU, usable cores, memory in bytes, and the GPU with its driver if there is one."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    facts: dict[str, Any] = {
        "cpu": next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["driver"] = _driver()
    return facts


@cache  # a file of figures is written after each row, and the query takes tenths of a second
def _driver() -> str:
    return _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]) or "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the installed ones of PACKAGES."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def commit() -> str:
    """The checkout's commit, with "+" if files differ from it, or "unknown" for a package outside of its checkout.

    A package that is installed in another project's checkout, such as in its ``.venv``, has not that project's commit.
    """
    package = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(package)]
    top = _output([*git, "rev-parse", "--show-toplevel"])
    if not top or Path(top).resolve() != package.parent:
        return "unknown"
    head = _output([*git, "rev-parse", "HEAD"])
    return head + ("+" if _output([*git, "status", "--porcelain"]) else "") if head else "unknown"


def _output(command: list[str]) -> str:
    """What a command prints; "" if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    ran = subprocess.run(command, capture_output=True, text=True)
    return "" if ran.returncode else ran.stdout.strip()


def command() -> str:
    """The command line of this process as it may be published: absolute paths cut to their last part, no secrets."""
    program, *arguments = sys.argv
    name = Path(program).name
    start = "saga-fast" if name in ("saga-fast", "__main__.py") else f"python {program}"
    parts = (Path(part).name if Path(part).is_absolute() else part for part in (*start.split(), *arguments))
    return redact(" ".join(parts))


def provenance() -> dict[str, Any]:
    """Hardware, versions, commit and command: the head of every JSON file of figures."""
    return {"hardware": hardware(), "versions": versions(), "commit": commit(), "command": command()}
