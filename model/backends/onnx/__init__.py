"""ONNX Runtime: exported stages on a CPU (cpu.py), and on a device with memory of its own (device.py)."""

import os

# ONNX Runtime reads it when it is imported; without it, it sends usage events and writes a device id for them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
