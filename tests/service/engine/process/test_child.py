"""A device that never responds, and what becomes of the requests in flight."""

import asyncio
from functools import partial

import numpy as np
import pytest

from msmlp.model.exits.rule import Reason
from msmlp.service.engine.async_engine import AsyncEngine
from msmlp.service.engine.messages import Died, ExitParameters, Outbound, Ready
from msmlp.service.engine.process.child import LOOKS, Watchdog
from msmlp.service.errors import EngineDownError
from tests.engines import Build, process
from tests.fakes import PATIENCE_SECONDS, pictures


def hangs(watchdog: Watchdog, looks: int) -> bool:
    return any(watchdog.hangs() for _ in range(looks))


def test_only_silence_for_all_looks_is_a_hang() -> None:
    watchdog = Watchdog()
    assert not hangs(watchdog, 10 * LOOKS), "it has not begun: the warm-up may take long"
    watchdog.alive()
    assert not hangs(watchdog, LOOKS)
    watchdog.alive()
    assert not hangs(watchdog, LOOKS), "it came round between"
    assert hangs(watchdog, 1)


def test_waiting_for_others_is_no_hang_but_silence_after_it_is() -> None:
    watchdog = Watchdog()
    watchdog.alive()
    assert not hangs(watchdog, LOOKS)
    watchdog.rest()
    assert not hangs(watchdog, 10 * LOOKS)
    watchdog.alive()
    assert not hangs(watchdog, LOOKS)
    assert hangs(watchdog, 1)


def test_a_device_that_hangs_fails_its_requests_and_gets_a_new_process(capfd: pytest.CaptureFixture[str]) -> None:
    build, parameters = Build(capacity=8), ExitParameters(np.array([0.5, 0.5]), 1, 3)

    async def main() -> None:
        heard: asyncio.Queue[Outbound] = asyncio.Queue()
        make = partial(process, hang_seconds=0.3)
        engine = AsyncEngine(build, permits=8, worker=make)
        engine.watch(heard.put_nowait)
        engine.start()

        async def hear(kind: type[Outbound]) -> Outbound:
            while not isinstance(message := await asyncio.wait_for(heard.get(), PATIENCE_SECONDS), kind):
                pass
            return message

        await hear(Ready)
        with build.gate.held():
            with pytest.raises(EngineDownError):
                await engine.classify(pictures(1, 1.0), parameters, engine.admit(1))
            died = await hear(Died)
            assert isinstance(died, Died)
            assert died.restarting
        await hear(Ready)
        result = await engine.classify(pictures(1, 1.0), parameters, engine.admit(1))
        assert result.reason.tolist() == [Reason.CONFIDENT]
        await engine.stop()

    asyncio.run(main())
    assert "the device has not responded for 0.3 s" in capfd.readouterr().err
