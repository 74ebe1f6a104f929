"""Which device torch will use."""

import torch

from model.errors import OptionError


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU when there is one; OptionError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise OptionError("device", f"{name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device", "cuda is not available here (torch sees no GPU); use auto or cpu")
    return torch.device(name)
