"""What is on this machine: packages, memory, torch and GPUs. Nothing here needs torch to be installed."""

import os
import platform
import re
import shutil
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msmlp.model.cores import cores

GIB = 2**30


@dataclass
class Section:
    """One thing that was looked at: its line for people, its facts for --json, and what is wrong with it."""

    name: str
    line: str
    facts: Any
    problems: list[str] = field(default_factory=list)


def packages() -> Section:
    """Versions of what pyproject.toml's extras name; `serve` is needed to serve, with one of `cpu` and `gpu`."""
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in metadata.requires("msmlp") or []:
        parts = re.match(r"([\w.-]+).*extra == [\"'](serve|grpc|cpu|gpu|train)[\"']", requirement)
        if parts:
            extras.setdefault(parts[2], {})[parts[1]] = _version(parts[1])
    missing = [name for name, version in extras.get("serve", {}).items() if version is None]
    words = [
        f"{extra}: " + ", ".join(f"{name} {version or 'missing'}" for name, version in packages.items())
        for extra, packages in extras.items()
    ]
    problems = [f"serving needs {', '.join(missing)}: scripts/install.sh cpu serve (or gpu serve)"] if missing else []
    return Section("packages", f"\n{'':<10}".join(words), extras, problems)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> Section:
    """Cores this process may use, and memory."""
    memory = _available_memory()
    line = f"{platform.system()} {platform.machine()}, {cores()} cores"
    line += f", {memory:.1f} GiB of memory available" if memory is not None else ""
    return Section("machine", line, {"cores": cores(), "memory_available_gib": memory})


def _available_memory() -> float | None:
    """GiB, on Linux; a container's own limit where that is less."""
    try:
        [kilobytes] = re.findall(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        available = int(kilobytes) * 1024
    except (OSError, ValueError):
        return None
    try:
        limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        available = min(available, limit - used)
    except (OSError, ValueError):
        pass  # not in a container, or without a limit
    return round(available / GIB, 2)


def torch_and_gpus() -> list[Section]:
    """torch's build and the GPUs it sees."""
    try:
        import torch
    except ImportError as error:
        what_to_do = f"neither ONNX Runtime nor torch is here ({error}): scripts/install.sh cpu serve, or gpu serve"
        problems = [] if find_spec("onnxruntime") else [what_to_do]
        return [Section("torch", "missing", None, problems), Section("gpus", "none: torch is missing", [])]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    facts = {"version": torch.__version__, "build": build, "threads": torch.get_num_threads()}
    gpus = [
        {"name": torch.cuda.get_device_name(i), "memory_gib": torch.cuda.get_device_properties(i).total_memory / GIB}
        for i in range(torch.cuda.device_count())
    ]
    if gpus:
        line = ", ".join(f"{gpu['name']} ({gpu['memory_gib']:.0f} GiB)" for gpu in gpus)
    elif torch.version.cuda is None:
        driver = "; nvidia-smi is here: scripts/install.sh gpu serve brings a build for it"
        line = f"none: this torch is a CPU build{driver if shutil.which('nvidia-smi') else ''}"
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        line = f"none: CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
    else:
        line = "none: torch finds no driver or no device (see nvidia-smi)"
    words = f"{torch.__version__}, {build} build, {facts['threads']} threads"
    return [Section("torch", words, facts), Section("gpus", line, gpus)]
