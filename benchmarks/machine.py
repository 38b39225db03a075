"""Say on what machine, with what versions and from which commit something was measured."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .documents import RESULTS


def where(device: str) -> dict[str, str]:
    """Return each fact by its name, the processor or GPU first."""
    return {
        **(_gpu() if device == "cuda" else _cpu()),
        "system": f"{platform.machine()}, {platform.system()} {platform.release()}",
        **versions("torch", "triton", "numpy", "customops"),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the version of Python, those of packages, and the commit."""
    commit = _output("git", "rev-parse", "--short=12", "HEAD") or os.environ.get("GIT_COMMIT") or "unknown"
    changed = " with changes" if _output("git", "status", "--porcelain", "--untracked-files=no") else ""
    found = {name: _version(name) for name in packages}
    return {"Python": platform.python_version(), **found, "commit": commit + changed}


def this_run(module: str = "benchmarks") -> dict[str, str]:
    """Return the date, and the command that is running, which is ``python -m`` of a module."""
    return {
        "date": f"{datetime.date.today()}",
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
    }


def folder(facts: dict[str, str]) -> Path:
    """Return the folder that holds results of this machine."""
    return RESULTS / slug(facts["device"])


def slug(name: str) -> str:
    """Return ``name`` in lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _gpu() -> dict[str, str]:
    properties = torch.cuda.get_device_properties()
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    return {
        "device": properties.name,
        "multiprocessors": str(properties.multi_processor_count),
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "driver": driver or "unknown",
        "CUDA": str(torch.version.cuda),
    }


def _cpu() -> dict[str, str]:
    models = re.findall(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return {
        "device": models[0] if models else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "memory": f"{memory / 2**30:.0f} GiB",
    }


def _version(name: str) -> str:
    if name == "torch":
        return torch.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _output(*command: str) -> str:
    """Return what a command prints, nothing where it is missing or fails."""
    try:
        process = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return process.stdout.strip()
