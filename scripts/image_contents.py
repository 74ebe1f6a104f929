"""Lists what an image contains. Runs inside it, with the standard library only, and prints one JSON document."""

import hashlib
import json
import os
import re
import runpy
import stat
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path

LARGE = 1 << 20
"""Bytes above which a duplicate file matters."""

LIBRARY = re.compile(r"(lib.+?)(?:\.so[.\d]*|(?:_static)?\.a)")
"""The name of a library without version and suffix."""

CUDA = (("onnxruntime/capi/build_and_package_info.py", "cuda_version"), ("torch/version.py", "cuda"))
"""The modules that say for which CUDA their packages were built."""


def files() -> Iterator[tuple[Path, os.stat_result]]:
    """Files and folders of the root file system without mounts, each inode once."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    seen = set()
    for folder, below, names in os.walk("/"):
        below[:] = [name for name in below if str(Path(folder, name)) not in mounts]
        for path in (Path(folder, name) for name in (*below, *names)):
            status = path.lstat()
            if status.st_ino not in seen and str(path) not in mounts:
                yield path, status
            seen.add(status.st_ino)


def archived(status: os.stat_result) -> int:
    """The bytes of a file in a layer, which is a tar archive: a header, and the content in blocks."""
    return 512 + (-(-status.st_size // 512) * 512 if stat.S_ISREG(status.st_mode) else 0)


def doubles(paths: Iterable[Path]) -> list[list[str]]:
    """Files of equal content, and libraries in more than one version or kind."""
    groups = defaultdict(set)
    for path in paths:
        with path.open("rb") as file:
            groups[hashlib.file_digest(file, "sha256").hexdigest()].add(str(path))
        if library := LIBRARY.fullmatch(path.name):
            groups[library[1]].add(str(path))
    return [sorted(group) for group in groups.values() if len(group) > 1]


def cuda() -> dict[str, str | None]:
    """The CUDA that a package was built for, by package."""
    modules = [(Path(sysconfig.get_path("purelib"), file), name) for file, name in CUDA]
    return {str(module): runpy.run_path(str(module)).get(name) for module, name in modules if module.exists()}


if __name__ == "__main__":
    found = dict(files())
    large = [path for path, status in found.items() if stat.S_ISREG(status.st_mode) and status.st_size >= LARGE]
    contents = {
        "bytes": sum(map(archived, found.values())),
        "doubles": doubles(large),
        "packages": {each.name: each.version for each in distributions()},
        "cuda": cuda(),
    }
    json.dump(contents, sys.stdout)
