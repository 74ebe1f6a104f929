"""How many threads torch computes with on a CPU."""

import os
from functools import cache

import torch


@cache  # a second backend of a process would take one more core away
def set_threads() -> None:
    """Tell torch, on the thread that will compute; OMP_NUM_THREADS outranks it."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_for(torch.get_num_threads()))


def threads_for(cores: int) -> int:
    """All cores but one, which is left to the event loop and the decoders.

    Every operation ends when the last of its threads has done its part. One that has to share its core makes all others
    wait, turning microseconds into the milliseconds after which the system gives it the core back.
    """
    return max(1, cores - 1)
