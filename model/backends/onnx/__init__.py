"""ONNX Runtime: exported stages on a CPU (cpu.py) and on a GPU (device.py)."""

import os

# Read when ONNX Runtime is imported; without it, it would send usage events and write a device id for them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
