"""Whether there is a GPU and what memory it has left, without torch."""

import os
import subprocess

from msmlp.model.errors import DeviceError
from msmlp.model.platform.memory import MIB

NODES = ("/dev/nvidiactl", "/dev/dxg")
"""What NVIDIA's driver puts there, on Linux and on WSL."""


def gpu_present() -> bool:
    """Whether this process may see a GPU, by the driver's device node; torch knows, but takes seconds to import."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(map(os.path.exists, NODES))


def free_gpu_memory() -> int:
    """Bytes free on the first GPU this process may see, as the driver says; DeviceError where it says nothing."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return int(said.split()[0]) * MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        raise DeviceError("nvidia-smi does not say how much memory the GPU has free; set --capacity") from None
