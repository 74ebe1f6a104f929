"""Memory of a process that serves: when garbage is collected, and when what is free goes back to the system."""

import asyncio
import ctypes
import gc
import os
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

YOUNG_OBJECTS = 250_000
"""A garbage collection comes when this many more objects were made than freed, in place of Python's 700. Under overload
thousands of requests wait, with half a million objects: looking through them again and again took 40 % of the CPU time,
and with 50,000 here a fifth of the answers is still lost. But a collection frees about a million objects a second, and
holds up the event loop meanwhile: gRPC leaves a cycle of 5 objects with each call.
"""

MOST_CAUSES = 10
"""Errors behind an error that are looked at."""

LOOK_SECONDS = 1.0
GROWN_BYTES = 32 * 2**20
"""How much more than the last time makes it worth while to give back memory."""
GARBAGE_BYTES = 2**30
"""How much more than the last time makes a process collect that is not idle: the number of objects does not say how
large they are. A first overload takes less, for the engine's slots and what waits."""


def tune_gc() -> None:
    """Exempt everything that exists now from garbage collection, once per process, and collect more rarely from now on.

    torch brings 200,000 objects: a full collection over them stops every thread for a tenth of a second.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)


def free_frames(error: BaseException) -> None:
    """Free what an error that was dealt with still holds: its frames, with bodies and pictures. They often refer to it
    in turn, as a future does that failed, so that nothing but a collection would free them.
    """
    chain: BaseException | None = error
    for _ in range(MOST_CAUSES):
        if chain is None:
            return
        traceback.clear_frames(chain.__traceback__)
        chain.__traceback__ = None  # also of those that still run
        chain = chain.__context__


@asynccontextmanager
async def trimmed(idle: Callable[[], bool]) -> AsyncIterator[None]:
    """Inside, large garbage is collected, and memory that is free goes back to the system once the process is idle:
    glibc keeps what a burst took, and is then split up so that the next one takes more. Other C libraries have no
    `malloc_trim` and keep what they keep.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
    task = asyncio.create_task(_run(trim, idle))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _run(trim: Callable[[int], object], idle: Callable[[], bool]) -> None:
    least = collected = resident_bytes()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = resident_bytes()
        least, collected = min(least, now), min(collected, now)
        spare = now > least + GROWN_BYTES and idle()
        if spare or now > collected + GARBAGE_BYTES:
            gc.collect(1)
            collected = resident_bytes()
        if spare:
            with suppress(RuntimeError):  # no thread is to be had now
                await asyncio.to_thread(trim, 0)
            least = resident_bytes()


def resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
