"""`msmlp export` and `msmlp serve --backend onnx` as processes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.errors import install_hint
from msmlp.model.offline import run_every_exit
from msmlp.model.weights import load_calibration, load_weights
from tests.fakes import PATIENCE_SECONDS
from tests.processes import Call, Served, environment, run_msmlp
from tests.servers import encoded

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from msmlp.main import main; main()"


@pytest.mark.system  # it takes ten seconds or more
def test_export_prints_one_document_and_writes_the_same_files_each_time(
    tiny_weights: Path, weights_without_graphs: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(weights_without_graphs, tmp_path / "tiny"))
    done = run_msmlp("export", "--weights", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["weights"] == str(folder)
    assert [(graph["stage"], graph["file"]) for graph in document["graphs"]] == [
        (1, "stage-1.onnx"),
        (2, "stage-2.onnx"),
        (3, "stage-3.onnx"),
    ]
    for graph in document["graphs"]:
        written = (folder / graph["file"]).read_bytes()
        assert len(written) == graph["bytes"]
        assert written == (tiny_weights / graph["file"]).read_bytes()
    assert (folder / "export.json").read_bytes() == (tiny_weights / "export.json").read_bytes()


def test_weights_are_served_where_no_torch_is_installed(tiny_weights: Path, digits: Any) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "serve", "--weights", str(tiny_weights), "--port", "0"]
    served = Served(subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True))
    try:
        served.wait_for("engine: ready: onnx on cpu")
        files = [("images", (f"{i}.png", encoded(pixels))) for i, pixels in enumerate(digits.test[:8])]
        answer = httpx.post(
            f"{served.url}/classify", files=files, params={"thresholds": "1,1"}, timeout=PATIENCE_SECONDS
        )
        metrics = httpx.get(f"{served.url}/metrics", timeout=PATIENCE_SECONDS).text
    finally:
        served.kill()
    assert answer.status_code == 200, answer.text
    weights = load_weights(tiny_weights)
    torch = select_backend(weights, load_calibration(weights), BackendSettings("cpu", capacity=8), "torch").build()
    expected = run_every_exit(torch, digits.test[:8])
    results = answer.json()["results"]
    assert [result["class_id"] for result in results] == expected.predictions[:, -1].tolist()
    assert [result["score"] for result in results] == pytest.approx(expected.scores[:, -1].tolist(), abs=1e-5)
    assert 'backend="onnx"' in metrics


def test_calibrate_says_what_to_install_where_graphs_cannot_be_written(tiny_weights: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    program = "import sys; sys.modules['onnx'] = None; from msmlp.main import main; main()"
    command = [sys.executable, "-c", program, "calibrate", "--weights", str(folder), "--data", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"msmlp: this command needs the package onnx: {install_hint('serve,train')}\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_graphs_that_are_missing_or_stale_are_said_before_anything_starts(
    call: Call, capsys: pytest.CaptureFixture[str], weights_without_graphs: Path
) -> None:
    folder = weights_without_graphs
    assert call("serve", "--weights", folder, "--backend", "onnx") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"msmlp: {folder} has no float32 ONNX graphs; run msmlp export --weights {folder}"
