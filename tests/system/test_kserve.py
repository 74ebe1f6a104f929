"""KServe's own client against `make serve`."""

import json
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.servers import encoded

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "examples" / "cat.jpg"


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
    assert "policy: 'best' is not an operating point" in told["error"]
    for kind, files in (("pixels", [encoded(crop) for crop in crops]), ("image", [PICTURE.read_bytes()])):
        parts = [("images", file) for file in files]
        expected = serve_shipped.post("/classify", files=parts).json()["results"]
        for form in ("binary", "json"):
            got = told[f"{form} {kind}"]
            assert got["id"] == "r-1"
            assert got["label"] == [result["label"] for result in expected]
            assert got["exit"] == [result["exit"] for result in expected]
            assert got["confidence"] == pytest.approx([result["confidence"] for result in expected], abs=1e-5)
