"""KServe's own client against `make serve`.

It lives in an environment of its own: among what it brings along are another event loop and HTTP parser, which uvicorn
would take up by itself, so the server under test would no longer be the one that users run.
"""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.servers import encoded

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "examples" / "cat.jpg"


@pytest.fixture(scope="module")
def kserve_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with KServe's client."""
    folder = tmp_path_factory.mktemp("kserve")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "kserve>=0.15"], check=True)
    return python


def test_its_client_is_told_what_classify_says(
    kserve_python: Path, serve_shipped: httpx.Client, tmp_path: Path
) -> None:
    picture = Image.open(PICTURE).convert("RGB")
    crops = np.stack([np.asarray(picture.resize((32, 32)).rotate(angle)) for angle in (0, 90, 180)])
    np.save(tmp_path / "pixels.npy", crops)
    program = ROOT / "tests" / "system" / "kserve_client.py"
    command = [kserve_python, program, str(serve_shipped.base_url), tmp_path / "pixels.npy", PICTURE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["live"], told["ready"], told["model_ready"]) == (True, True, True)
    assert "policy: 'best' is no operating point" in told["error"]
    for kind, files in (("pixels", [encoded(crop) for crop in crops]), ("image", [PICTURE.read_bytes()])):
        parts = [("images", file) for file in files]
        expected = serve_shipped.post("/classify", files=parts).json()["results"]
        for form in ("binary", "json"):
            got = told[f"{form} {kind}"]
            assert got["id"] == "r-1"
            assert got["label"] == [result["label"] for result in expected]
            assert got["exit"] == [result["exit"] for result in expected]
            assert got["confidence"] == pytest.approx([result["confidence"] for result in expected], abs=1e-5)
