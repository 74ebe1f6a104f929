"""The machine's pip settings, for the pip of a container build.

Behind a proxy or a mirror pip works only with the settings of the machine; they are read when needed and never
stored in the repository.
"""

import ast
import sys
from pathlib import Path

from scripts.commands import output

SETTINGS = ("cert", "find-links", "index-url", "extra-index-url", "trusted-host")
PLACES = ("global", "user", "site", ":env:")
"""Where pip reads settings; later ones win."""


def pip_volumes(scratch: Path) -> list[str]:
    """Volumes, as HOST:CONTAINER:ro: a pip.conf, written into `scratch`, and the files that it names."""
    settings = _settings()
    lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
    (scratch / "pip.conf").write_text("\n".join(lines) + "\n")
    named = {_local(word) for value in settings.values() for word in value.split()}
    files = sorted(str(path) for path in named if path.exists())
    return [f"{scratch}/pip.conf:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in files)]


def _settings() -> dict[str, str]:
    """What `pip config list` prints, lines like global.cert='/etc/cert.pem'."""
    found: dict[tuple[int, str], str] = {}
    for line in output(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        place, _, name = key.rpartition(".")
        if place in PLACES and name in SETTINGS:
            found[PLACES.index(place), name] = str(ast.literal_eval(value))
    return {name: value for (_, name), value in sorted(found.items())}


def _local(word: str) -> Path:
    """The folder or file that a setting names; for an index, the folder of its files."""
    return Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word)
