"""The container's CPU image, built and called for real."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]


def test_the_cpu_image_is_built_and_answers() -> None:
    # Nothing of the `make test-system` that may be around it.
    variables = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES", "ARGS")
    }
    command = ["make", "image-test", "EXTRA=cpu"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("image-test: ")]
    assert [line.split()[1] for line in said] == ["localhost/msmlp:cpu", "ready", "with"], said
