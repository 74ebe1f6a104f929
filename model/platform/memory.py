"""How much memory there is, how many slots that makes, and what a library says when there is none left."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msmlp.model.errors import DeviceError, MsmlpError, OutOfMemoryError
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.platform.cores import groups

SHARE = 0.25
"""What slots may take of the memory that is free before the weights are loaded: those and batches need the rest."""

MAX_CAPACITY = 16_384
"""Images in flight without `capacity` set. More keep no device busier: they only wait longer in its queue."""

MIB = 2**20

NEWER = "memory.max", "memory.current", "inactive_file"
OLDER = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
"""A control group's limit and use, and what of the use is cache, in the two kinds of control groups."""

_NO_ROOM = (
    "out of memory",
    "allocate memory",
    "unable to allocate",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
    "could not create a primitive",  # oneDNN, and that is all it says
)


def slot_bytes(cascade: CascadeConfig, itemsize: int) -> int:
    """A slot's image and its features at every stage boundary, of `itemsize` bytes a number."""
    features = sum(cascade.tokens(k) * stage.width for k, stage in enumerate(cascade.stages[:-1]))
    return 3 * cascade.image_size**2 + itemsize * features


def slots_that_fit(bytes_a_slot: int, free: int, *, max_batch: int, reserve: int = 0) -> int:
    """As many slots as SHARE of `free` bytes holds, MAX_CAPACITY and `reserve` at most.

    Raises:
        DeviceError: too few for one largest batch and the reserve.
    """
    # One row more than slots: that is where padding reads and writes.
    fit, least = int(SHARE * free) // bytes_a_slot - 1, max_batch + reserve
    if fit < least:
        raise DeviceError(
            f"{least} slots need {(least + 1) * bytes_a_slot / MIB:.1f} MiB, and slots may take "
            f"{SHARE:.0%} of the {free / MIB:.1f} MiB free here; lower --max-batch or set --capacity"
        )
    return min(fit, MAX_CAPACITY + reserve)


def free_host_memory(root: Path = Path("/")) -> int:
    """Bytes this process can still take: what the machine has available, or less where its control groups say so."""
    return max(0, min([_available(root), *_left(root)]))


def _available(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # Not Linux: all the memory there is, of which SHARE is taken.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _left(root: Path) -> Iterator[int]:
    """What each control group leaves."""
    for folder, newer in groups("memory", root):
        limit, used, cache = NEWER if newer else OLDER
        try:
            most, taken = int((folder / limit).read_text()), int((folder / used).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # not there, or "max"
            continue
        # The page cache is given back when memory is wanted.
        yield most - taken + int(statistics.get(cache, 0))


@contextmanager
def failures() -> Iterator[None]:
    """What a library raises, as OutOfMemoryError or DeviceError. Also a decorator."""
    try:
        yield
    except MsmlpError:
        raise
    except Exception as error:
        # ONNX Runtime's are no RuntimeErrors.
        if not isinstance(error, MemoryError | RuntimeError) and "onnxruntime" not in type(error).__module__:
            raise
        kind = OutOfMemoryError if _is_out_of_memory(error) else DeviceError
        raise kind(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Also when that happened first: what is cleaned up after it may fail in its own way."""
    while error is not None:
        if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _NO_ROOM):
            return True
        error = error.__context__
    return False
