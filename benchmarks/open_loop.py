"""Requests at the times of a Poisson process, whatever came back."""

import asyncio
import time
from contextlib import ExitStack, closing

import numpy as np

from msmlp.bench.generator import Connection, Load, Seen


async def open_loop(load: Load, seen: Seen, *, rate: float, seed: int = 0) -> None:
    """For `offer`: `rate` requests per second; latencies count from when a request was due.

    The load's `connections` bound how many requests wait for their answer at once.
    """
    rng, number, due = np.random.default_rng(seed), 0, time.perf_counter()
    until = due + load.seconds
    with ExitStack() as stack:
        free = [stack.enter_context(closing(Connection(load, seen))) for _ in range(load.connections)]
        waiting = asyncio.Semaphore(load.connections)

        async def send(number: int, due: float) -> None:
            async with waiting:
                connection = free.pop()
                await connection.ask(number, due)
                free.append(connection)

        async with asyncio.TaskGroup() as sending:
            while (due := due + rng.exponential(1 / rate)) < until:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                sending.create_task(send(number, due))
                number += 1
