"""Tickets and scores for a scheduler under test."""

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import ExitParameters
from msmlp.service.engine.scheduler import Scheduler
from msmlp.service.engine.tickets import Slots


def slots(*numbers: int) -> Slots:
    return np.array(numbers, dtype=np.int64)


def enter(
    scheduler: Scheduler,
    where: Slots,
    request: int = 0,
    *,
    thresholds: tuple[float, ...] | None = None,
    min_exit: int = 1,
    max_exit: int | None = None,
    deadline: float = np.inf,
    now: float = 0.0,
) -> None:
    """Tickets whose thresholds are all 0.5 unless said."""
    chosen = np.array(thresholds if thresholds is not None else [0.5] * (scheduler.stages - 1))
    high = scheduler.stages if max_exit is None else max_exit
    scheduler.add(where, request, ExitParameters(chosen, min_exit, high, deadline), now)


def scores(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)
