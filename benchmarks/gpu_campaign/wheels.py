"""Which Python packages a machine lacks that has torch and can fetch nothing, and the wheels of them.

The versions are those of the environment that runs this: the tests passed with them.
"""

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

NEEDED = (
    *("numpy", "pillow", "pydantic", "safetensors", "torch", "typer"),
    *("fastapi", "httptools", "httpx", "orjson", "prometheus-client", "pydantic-settings"),
    *("python-json-logger", "python-multipart", "kornia", "matplotlib", "tqdm", "uvicorn"),
)
"""What training, evaluating and `bench engine` import: ours, without what only `msmlp export` and speed ask for."""

# Names that our own versions may be too new for are not among them (typer, typing-extensions, annotated-doc): they are
# brought along.
THERE = frozenset(
    (
        *("anyio", "certifi", "click", "contourpy", "cycler", "filelock", "fonttools", "fsspec", "h11", "httpcore"),
        *("httpx", "idna", "jinja2", "kiwisolver", "markdown-it-py", "markupsafe", "matplotlib", "mdurl", "mpmath"),
        *("networkx", "numpy", "packaging", "pillow", "prometheus-client", "pygments", "pyparsing", "python-dateutil"),
        *("rich", "safetensors", "setuptools", "shellingham", "six", "sympy", "torch", "tqdm", "triton"),
    )
)
"""What the machine's image holds of these and of what they need."""

PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35)),
    *("manylinux2014_x86_64", "manylinux1_x86_64"),
)


def missing(python: str) -> dict[str, str]:
    """The packages to bring, with versions: what NEEDED needs, down to the last, that is not THERE."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    found: dict[str, str] = {}
    queue = [canonicalize_name(name) for name in NEEDED]
    while queue:
        name = queue.pop()
        if name in found or name in THERE:
            continue
        found[name] = importlib.metadata.version(name)
        queue += [canonicalize_name(need.name) for need in _needs(name, environment)]
    return dict(sorted(found.items()))


def _needs(name: str, environment: dict[str, str]) -> Iterator[Requirement]:
    for text in importlib.metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            yield requirement


def download(packages: dict[str, str], folder: Path, python: str) -> None:
    """Fetch the wheels of `packages` for `python` on x86-64 Linux; what lies there already is not fetched again."""
    wanted = [f"{name}=={version}" for name, version in packages.items() if not _has(folder, name, version)]
    if not wanted:
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, *wanted], check=True)


def _has(folder: Path, name: str, version: str) -> bool:
    parsed = (parse_wheel_filename(path.name) for path in folder.glob("*.whl"))
    return any(wheel[0] == canonicalize_name(name) and str(wheel[1]) == version for wheel in parsed)
