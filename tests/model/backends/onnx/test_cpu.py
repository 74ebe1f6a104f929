"""What tests/contracts cannot see of the ONNX Runtime backend."""

import os
import subprocess
import sys
from pathlib import Path


def test_no_usage_events_are_sent(tmp_path: Path) -> None:
    """ONNX Runtime keeps its device id and its queue of events in the home folder, where it may."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    program = "import msmlp.model.backends.onnx.cpu, onnxruntime; onnxruntime.SessionOptions()"
    subprocess.run([sys.executable, "-c", program], env={**environment, "HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.rglob("*"))
