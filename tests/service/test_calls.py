"""How what is in progress over gRPC ends."""

import asyncio

import pytest

from msmlp.service.calls import Calls
from msmlp.service.errors import CUT, DrainingError
from tests.fakes import PATIENCE_SECONDS


def test_what_is_in_progress_is_counted_and_cut() -> None:
    async def hang(calls: Calls) -> None:
        with calls.one():
            async with calls.within(0):
                await asyncio.sleep(PATIENCE_SECONDS)

    async def main() -> None:
        calls = Calls()
        tasks = [asyncio.create_task(hang(calls)) for _ in range(3)]
        await asyncio.sleep(0)
        assert calls.open == 3
        calls.cut()
        for task in tasks:
            with pytest.raises(DrainingError, match=CUT):
                await task
        assert calls.open == 0
        with calls.one():
            async with calls.within(0):
                pass  # the answer that says so

    asyncio.run(main())


def test_what_is_over_at_that_moment_is_cut_too() -> None:
    async def main() -> None:
        calls, unwound = Calls(), asyncio.Event()

        async def hang() -> None:
            async with calls.within(0.01):
                try:
                    await asyncio.sleep(PATIENCE_SECONDS)
                finally:
                    calls.cut()
                    unwound.set()

        with pytest.raises(DrainingError, match=CUT):
            await hang()
        assert unwound.is_set()

    asyncio.run(main())


def test_what_takes_too_long_is_not_called_cut() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with Calls().within(0.01):
                await asyncio.sleep(PATIENCE_SECONDS)

    asyncio.run(main())
