"""Where a result comes from: device, commit, command."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

COMMIT = "GIT_COMMIT"
"""The environment's name for the commit of a copy that is no clone."""


def command_line() -> str:
    """The command that is running, as one would type it again."""
    return shlex.join(["msmlp", *sys.argv[1:]])


def device_name(device: torch.device) -> str:
    """A name for the record: the GPU's own, or `cpu` with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


def git_commit() -> str | None:
    """The commit of this code, `+` when the tree differs from it; outside a clone what COMMIT says, if anything."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # git would look further up: a virtual environment may lie in another repository
        return os.environ.get(COMMIT)
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get(COMMIT)
    return described.stdout.strip()
