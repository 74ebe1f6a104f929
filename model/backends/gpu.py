"""Whether there is a GPU, without torch."""

import os

NODES = ("/dev/nvidiactl", "/dev/dxg")
"""What NVIDIA's driver puts there, on Linux and on WSL."""


def gpu_present() -> bool:
    """Whether this process may see a GPU, by the driver's device node; torch knows, but takes seconds to import."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(map(os.path.exists, NODES))
