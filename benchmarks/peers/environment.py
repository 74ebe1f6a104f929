"""The peers' virtual environment: their packages are none of ours."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from msmlp.model.errors import MsmlpError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
SHARED = ("numpy", "onnxruntime", "pillow")
"""In our versions, so that servers are compared and not libraries."""
TOLD = ("litserve", "fastapi", "uvicorn", "uvloop", "httptools", *SHARED)


class PeersError(MsmlpError):
    """What the benchmark needs could not be made."""


def environment(folder: Path) -> str:
    """The Python of the environment in `folder`, made where there is none; pip's own settings say from where."""
    python = folder / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    shared = [f"{name}=={importlib.metadata.version(name)}" for name in SHARED]
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    _run([*pip, "--requirement", str(REQUIREMENTS), *shared])
    return str(python)


def versions(python: str) -> dict[str, str]:
    """Of what the peers are made of. Raises PeersError if torch is there: it would slow them down."""
    listed = _run([python, "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"])
    found = {package["name"].lower(): package["version"] for package in json.loads(listed)}
    if "torch" in found:
        raise PeersError("torch is in the peers' environment, where it has no business; remove that folder")
    return {name: found[name] for name in TOLD if name in found}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise PeersError(f"{' '.join(command[1:4])} ... ended with {done.returncode}; it said: {words[-1]}")
    return done.stdout
