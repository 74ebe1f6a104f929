"""The GPU, without torch, which takes seconds to import: whether there is one, and how much of its memory is free."""

import os
import subprocess

from msmlp.model.errors import DeviceError

DEVICE_NODES = ("/dev/nvidiactl", "/dev/dxg")
"""NVIDIA's driver makes these, on Linux and on WSL."""


def gpu_present() -> bool:
    """Whether this process may see a GPU."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(map(os.path.exists, DEVICE_NODES))


def free_gpu_memory() -> int:
    """Bytes free on the first GPU this process may see, from the driver; DeviceError if it does not say."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return int(said.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        raise DeviceError("nvidia-smi does not say how much memory the GPU has free; set --capacity") from None
