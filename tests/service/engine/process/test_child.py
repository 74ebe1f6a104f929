"""A device that never responds, and what becomes of the requests in flight."""

import asyncio
from functools import partial

import numpy as np
import pytest

from msmlp.model.exits.rule import Reason
from msmlp.service.engine.async_engine import AsyncEngine
from msmlp.service.engine.messages import Died, ExitParameters, Outbound, Ready
from msmlp.service.engine.process.group import ProcessWorker
from msmlp.service.errors import EngineDownError
from tests.engines import Build, process
from tests.fakes import PATIENCE_SECONDS, pictures


def test_a_device_that_hangs_fails_its_requests_and_gets_a_new_process(caplog: pytest.LogCaptureFixture) -> None:
    build, parameters = Build(capacity=8), ExitParameters(np.array([0.5, 0.5]), 1, 3)

    async def main() -> None:
        heard: asyncio.Queue[Outbound] = asyncio.Queue()
        make = partial(process, silence=1.0)
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
            assert isinstance(engine.worker, ProcessWorker)
            while not engine.worker.restarts:
                await asyncio.sleep(0.01)
        await hear(Ready)
        result = await engine.classify(pictures(1, 1.0), parameters, engine.admit(1))
        assert result.reason.tolist() == [Reason.CONFIDENT]
        await engine.stop()

    asyncio.run(main())
    assert "the engine's process did not respond for 1 s; restart in" in caplog.text
