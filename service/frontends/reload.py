"""A reload: checks the weights folder and starts a generation for it beside the one that serves. Clients notice nothing
until all of it is ready."""

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from msmlp.model.errors import CallerError, MsmlpError
from msmlp.model.platform import free_host_memory
from msmlp.service.errors import BadWeightsError, NoMemoryError, ReloadFailedError
from msmlp.service.frontends.generation import Generation, Plan
from msmlp.service.frontends.layout import memory_needed

log = logging.getLogger("msmlp.supervisor")

READY_SECONDS = 600.0
"""How long a generation may take to become ready."""

LOOK_SECONDS = 0.05


PLAN_SECONDS = 120.0
"""How long reading and checking the weights folder may take."""


async def plan_beside(plan: Callable[[], Plan], served: Plan) -> Plan:
    """What `plan` makes of the weights folder, laid out as what is served.

    Raises:
        BadWeightsError: there is nothing in it that could be served so.
        NoMemoryError: there is no room beside what is served.
        ReloadFailedError: it takes longer than PLAN_SECONDS.
    """
    try:
        made = await _in_a_thread(plan)
    except CallerError as error:
        raise BadWeightsError(str(error)) from None
    except MemoryError:
        raise NoMemoryError("the weights could not be read: there is no memory left") from None
    if made.layout.engine != served.layout.engine:
        detail = f"with these weights the engine would be {made.layout.engine}, but it is {served.layout.engine}"
        raise BadWeightsError(f"{detail}: export them (msmlp export), or restart the service")
    made = replace(made, layout=served.layout)
    needed, free = memory_needed(made.layout, made.weights_bytes, len(made.engines.all)), free_host_memory()
    if needed > free:
        raise NoMemoryError(f"the new weights need {needed} bytes beside the current ones; {free} are free")
    return made


async def _in_a_thread(plan: Callable[[], Plan]) -> Plan:
    """What `plan` returns or raises; ReloadFailedError if it takes longer than PLAN_SECONDS."""
    made: Future[Plan] = Future()
    made.set_running_or_notify_cancel()

    def collected() -> Plan:
        try:
            return plan()
        finally:
            gc.collect()  # a service that was built only to be looked at is full of cycles

    def run() -> None:
        try:
            made.set_result(collected())
        except BaseException as error:
            made.set_exception(error)

    # Hashing and checking many megabytes would hold up connections, and a file system may hang. A daemon, as the
    # threads of `asyncio.to_thread` are waited for at the end of the process.
    threading.Thread(target=run, name="msmlp-plan", daemon=True).start()
    waiting = asyncio.wrap_future(made)
    try:
        await asyncio.wait([waiting], timeout=PLAN_SECONDS)
        if not waiting.done():
            raise ReloadFailedError(f"the weights folder could not be read within {PLAN_SECONDS:g} s")
        return waiting.result()
    finally:
        waiting.cancel()


async def warm_up(generation: Generation) -> None:
    """Start it and wait until all of it is ready, and listens for gRPC; ReloadFailedError if one of its processes dies
    first, or it takes too long.
    """
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(error: MsmlpError) -> None:
        if not failed.done():
            failed.set_exception(ReloadFailedError(str(error)))

    def raise_failure() -> None:
        if failed.done():
            failed.result()

    generation.fail = fail
    generation.start()
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not generation.warm:
                await asyncio.wait([failed], timeout=LOOK_SECONDS)
                raise_failure()
        began = await generation.ask("serve")
        raise_failure()
        if not began:
            raise ReloadFailedError("the new front ends did not start serving; the gRPC port may be in use")
    except TimeoutError:
        raise ReloadFailedError(f"the new weights were not ready within {READY_SECONDS:g} s") from None
    finally:
        failed.cancel()


def explained(error: Exception) -> tuple[MsmlpError, str]:
    """Why a reload has failed: the error for the caller, and the value of the label `outcome`."""
    if not isinstance(error, MsmlpError):
        log.error("a reload failed", exc_info=error)
        error = ReloadFailedError(f"unexpected {type(error).__name__}")
    return error, {BadWeightsError: "bad_weights", NoMemoryError: "insufficient_memory"}.get(type(error), "failed")
