"""Which device and which numbers torch will use, and what memory the device has left."""

import torch

from msmlp.model.backends.memory import free_host_memory
from msmlp.model.errors import OptionError


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU when there is one; OptionError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise OptionError("device", f"{name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device", "cuda is not available here (torch sees no GPU); use auto or cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU and fp32 on a CPU; OptionError for one that no stage runs in."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    except KeyError:
        raise OptionError("dtype", f"{name!r} is not one of auto, float32, bfloat16") from None


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take there."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free
    return free_host_memory()
