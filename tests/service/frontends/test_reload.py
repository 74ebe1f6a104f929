"""What is found out about new weights before anything is started."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from msmlp.model.errors import MsmlpError, WeightsError
from msmlp.service.engine.process.host import EngineHosts
from msmlp.service.errors import BadWeightsError, NoMemoryError, ReloadFailedError
from msmlp.service.frontends import reload
from msmlp.service.frontends.generation import Plan
from msmlp.service.frontends.layout import ENGINE_BYTES, PER_WEIGHT_BYTE, WORKER_BYTES, Layout, memory_needed
from tests.fakes import PATIENCE_SECONDS

SERVED = Plan(Layout(3, "inline", "set to 3"), EngineHosts(), {"name": "served", "version": "1"}, 1000)


def planned(plan: Callable[[], Plan]) -> Plan:
    return asyncio.run(reload.plan_beside(plan, SERVED))


def new(**changes: Any) -> Plan:
    fields = {"layout": Layout(1, "inline", "memory"), "engines": EngineHosts(), "model": {}, "weights_bytes": 2000}
    return Plan(**{**fields, **changes})


def test_it_is_laid_out_as_what_is_served() -> None:
    assert planned(new).layout == SERVED.layout


def test_the_memory_of_every_process_must_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * (WORKER_BYTES + PER_WEIGHT_BYTE * 2000)
    monkeypatch.setattr(reload, "free_host_memory", lambda: needed)
    planned(new)
    monkeypatch.setattr(reload, "free_host_memory", lambda: needed - 1)
    with pytest.raises(NoMemoryError, match=f"need {needed} bytes beside .*; {needed - 1} are free"):
        planned(new)


def test_front_ends_before_an_engine_need_its_memory_once() -> None:
    inside, before = memory_needed(SERVED.layout, 10**9, 0), memory_needed(SERVED.layout, 10**9, 1)
    assert before == ENGINE_BYTES + 3 * WORKER_BYTES + (3 + PER_WEIGHT_BYTE) * 10**9 < inside


@pytest.mark.parametrize(
    ("error", "told", "why"),
    [
        (WeightsError("model.safetensors is damaged"), BadWeightsError, "is damaged"),
        (MemoryError(), NoMemoryError, "no memory left"),
    ],
)
def test_what_cannot_be_read(error: Exception, told: type[MsmlpError], why: str) -> None:
    def plan() -> Plan:
        raise error

    with pytest.raises(told, match=why):
        planned(plan)


@pytest.fixture
def hung() -> Iterator[Callable[[], Plan]]:
    """A plan that ends with the test, or much later."""
    over = threading.Event()

    def plan() -> Plan:
        assert over.wait(PATIENCE_SECONDS), "somebody waited for it"
        raise WeightsError("too late for anybody to hear")

    before = set(threading.enumerate())
    yield plan
    over.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_SECONDS)


def test_a_folder_that_hangs_ends_the_reload(monkeypatch: pytest.MonkeyPatch, hung: Callable[[], Plan]) -> None:
    monkeypatch.setattr(reload, "PLAN_SECONDS", 0.01)
    with pytest.raises(ReloadFailedError, match=r"could not be read within 0\.01 s"):
        planned(hung)
    assert "msmlp-plan" in {thread.name for thread in threading.enumerate()}, "it was waited for"


def test_a_folder_that_hangs_does_not_hold_up_the_end(hung: Callable[[], Plan]) -> None:
    async def main() -> None:
        reloading = asyncio.create_task(reload.plan_beside(hung, SERVED))
        await asyncio.sleep(0)
        reloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reloading

    asyncio.run(main())
    assert "msmlp-plan" in {thread.name for thread in threading.enumerate()}, "it was waited for"


def test_why_it_failed_is_told_and_counted() -> None:
    told = BadWeightsError("why")
    assert reload.explained(told) == (told, "bad_weights")
    assert reload.explained(NoMemoryError("why"))[1] == "insufficient_memory"
    assert reload.explained(ReloadFailedError("why"))[1] == "failed"
    error, outcome = reload.explained(OSError("/a/path"))
    assert (str(error), outcome) == ("unexpected OSError", "failed")


def test_an_engine_of_another_kind_is_refused() -> None:
    with pytest.raises(BadWeightsError, match="would be process, but it is inline: export them"):
        planned(lambda: new(layout=Layout(1, "process", "torch")))
