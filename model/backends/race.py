"""`--backend auto`: of what can serve, the one that is faster on this machine."""

import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.errors import DeviceError

log = logging.getLogger("msmlp.engine")

LARGEST = 64
"""Of the batches that are run; what room there is for larger ones is for warm-up to find out."""

ROUNDS = 7
"""Of each the shortest counts: what disturbs a run only ever adds."""


def fastest(
    builds: Mapping[str, Callable[[], StageBackend]],
    passed_over: Mapping[str, str],
    clock: Callable[[], float] = time.perf_counter,
) -> StageBackend:
    """Build all, run every stage in three sizes of batch by turns, keep what has the smallest geometric mean of times.

    Args:
        builds: what builds each, by name; tried in this order, and not measured where there is only one.
        passed_over: backends that cannot serve, and why, for the log.
        clock: seconds.

    Raises:
        DeviceError: none can run.
    """
    for name, why in passed_over.items():
        log.info("auto: %s is not tried: %s", name, why)
    if len(builds) == 1:
        return next(iter(builds.values()))()
    backends: dict[str, StageBackend] = {}
    for name, build in builds.items():
        # A library that does not load, a device that is too small: the other may serve all the same.
        with _left_out_on_error(name):
            backends[name] = build()
    seconds = measured(backends, clock)
    if not seconds:
        raise DeviceError(f"no backend can run here: {', '.join(builds)} failed, as the log says")
    means = {name: float(np.exp(np.log(each).mean())) for name, each in seconds.items()}
    best = min(means, key=lambda name: means[name])
    for name, mean in means.items():
        if name != best:
            log.info("auto: %s, %.2f times as fast as %s here (geometric mean)", best, mean / means[best], name)
    winner = backends.pop(best)
    backends.clear()
    _give_memory_back()
    return winner


def measured(backends: Mapping[str, StageBackend], clock: Callable[[], float]) -> dict[str, NDArray[np.float64]]:
    """The shortest seconds of every stage in batches of three sizes, 1 and LARGEST among them, a backend.

    Without those that fail. One alone is not measured: what it has no room for, its warm-up finds out.
    """
    if len(backends) == 1:
        return {name: np.ones((1, backend.stages)) for name, backend in backends.items()}
    largest = min((LARGEST, *(backend.buckets[-1] for backend in backends.values())))
    sizes = sorted({1, max(1, largest // 8), largest})
    seconds = {name: np.full((len(sizes), backend.stages), np.inf) for name, backend in backends.items()}
    for number in range(ROUNDS + 1):
        for b, size in enumerate(sizes):
            for name in list(seconds):
                again: list[float] = []
                with _left_out_on_error(name):
                    again = _through(backends[name], size, clock)
                if not again:
                    del seconds[name]
                elif number:  # the first run captures graphs and takes memory
                    seconds[name][b] = np.minimum(seconds[name][b], again)
    return seconds


@contextmanager
def _left_out_on_error(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.warning("auto: %s cannot run here: %s", name, " ".join(str(error).split()) or type(error).__name__)


def _through(backend: StageBackend, images: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of each stage over one batch."""
    slots = backend.admit(np.zeros((images, backend.size, backend.size, 3), dtype=np.uint8))
    taken = []
    for stage in range(backend.stages):
        start = clock()
        backend.collect(backend.launch(stage, slots))
        taken.append(clock() - start)
    backend.release(slots)
    return taken


def _give_memory_back() -> None:
    """What the others held, on a GPU too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
