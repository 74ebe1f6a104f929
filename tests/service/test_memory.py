import subprocess
import sys
import weakref

import pytest

from msmlp.service.memory import free_frames


class Body(bytearray):
    pass


FRAGMENTS = """
import asyncio, sys
from msmlp.service import memory
memory.LOOK_SECONDS = 0.01

async def main(idle):
    async with memory.trimmed(lambda: idle):
        await asyncio.sleep(0.05)
        before = memory.resident_bytes()
        blocks = [bytes(60_000) for _ in range(3000)]
        left = blocks[::20]  # between others, which are freed
        del blocks
        assert memory.resident_bytes() > before + 100 * 2**20, "as glibc has it"
        for _ in range(500):
            await asyncio.sleep(0.02)
            if memory.resident_bytes() < before + 60 * 2**20:
                return True
        return False

assert asyncio.run(main(sys.argv[1] == "idle")) == (sys.argv[1] == "idle")
"""


@pytest.mark.system  # it takes ten seconds or more
@pytest.mark.parametrize("how", ["idle", "busy"])
def test_what_is_free_is_given_back_once_the_process_is_idle(how: str) -> None:
    subprocess.run([sys.executable, "-c", FRAGMENTS, how], check=True, timeout=100)


GARBAGE = """
import asyncio, gc, sys, weakref
from msmlp.service import memory
memory.LOOK_SECONDS = 0.01
idle = sys.argv[1] == "idle"
if not idle:
    memory.GARBAGE_BYTES = 200 * 2**20

class Body(bytearray):
    pass

async def main():
    async with memory.trimmed(lambda: idle):
        await asyncio.sleep(0.05)
        bodies = []
        for _ in range(300):
            cycle = [held := Body(b"x" * 2**20)]
            cycle.append(cycle)
            bodies.append(weakref.ref(held))
        del cycle, held
        for _ in range(500):
            if not any(each() for each in bodies):
                return True
            await asyncio.sleep(0.02)
        return False

gc.disable()
assert asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["idle", "busy"])
def test_large_garbage_is_collected_long_before_its_objects_are_many(how: str) -> None:
    # Alone: what other tests freed would be taken again, and the process would not grow.
    subprocess.run([sys.executable, "-c", GARBAGE, how], check=True, timeout=100)


def test_an_error_that_was_dealt_with_holds_nothing() -> None:
    def fail(body: Body) -> None:
        raise ValueError

    def handle(body: Body) -> Exception | None:
        try:
            try:
                fail(body)
            except ValueError:
                raise KeyError from None
        except KeyError as error:
            free_frames(error)
            return error
        return None

    body = Body(1)
    held, error = weakref.ref(body), handle(body)
    del body
    assert held() is None
    assert error
    assert error.__context__ is not None


LITTLE = """
import asyncio
from msmlp.service import memory
MIB = 2**20
sizes = [82 * MIB] * 10 + [83 * MIB] * 2 + [81 * MIB] * 5 + [50 * MIB, 100 * MIB]
memory.resident_bytes, memory.LOOK_SECONDS, trims = sizes.pop, 0.001, []

async def main():
    task = asyncio.create_task(memory._run(trims.append, lambda: True))
    while len(sizes) > 1:
        await asyncio.sleep(0.001)
    task.cancel()

asyncio.run(main())
assert trims == [0], "from the least there was, and once"
"""


def test_little_growth_is_let_be() -> None:
    subprocess.run([sys.executable, "-c", LITTLE], check=True, timeout=100)  # alone: servers of other tests look too


FREEZE = """
import gc
from msmlp.service.memory import tune_gc
kept = [[] for _ in range(1000)]
tune_gc()
count = gc.get_freeze_count()
assert count > 1000
assert not any(each is kept[0] for each in gc.get_objects())
kept += [[] for _ in range(1000)]
tune_gc()
assert gc.get_freeze_count() == count, "later objects are collected as ever"
"""


def test_tune_gc_exempts_what_exists_and_nothing_later() -> None:
    subprocess.run([sys.executable, "-c", FREEZE], check=True, timeout=60)


PAUSES = """
import gc
from msmlp.service.memory import tune_gc
tune_gc()
found = []
gc.callbacks.append(lambda phase, info: found.append(info["collected"]) if phase == "stop" else None)
for _ in range(1_500_000):
    cycle = []
    cycle.append(cycle)
assert found, "they are collected"
assert max(found) < 400_000, "in less than half a second"
"""


def test_small_garbage_is_collected_in_short_pauses() -> None:
    subprocess.run([sys.executable, "-c", PAUSES], check=True, timeout=60)
