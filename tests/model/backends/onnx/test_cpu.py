"""What tests/contracts cannot see of the ONNX Runtime backend."""

import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.backends.onnx.cpu import LARGE, SMALL, WorkerPool, buckets_of, part_of


def test_no_usage_events_are_sent(tmp_path: Path) -> None:
    """ONNX Runtime keeps its device id and its queue of events in the home folder, where it may."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    program = "import msmlp.model.backends.onnx.cpu, onnxruntime; onnxruntime.SessionOptions()"
    subprocess.run([sys.executable, "-c", program], env={**environment, "HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.rglob("*"))


@given(st.integers(1, 5000), st.integers(1, 64))
def test_parts_are_small_and_every_thread_has_some(bucket: int, threads: int) -> None:
    part = part_of(bucket, threads)
    parts = -(-bucket // part)
    assert 1 <= part <= LARGE
    assert parts >= min(threads, bucket // LARGE)
    assert part >= min(bucket, SMALL) or threads > 1
    assert parts * part - bucket < part  # no part is all padding


@given(st.integers(1, 5000))
def test_buckets_hold_every_batch_with_little_padding(largest: int) -> None:
    buckets = buckets_of(largest)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[:8] == tuple(range(1, min(8, largest) + 1))
    assert buckets[-1] == largest
    assert all(above <= 1.25 * below for below, above in pairwise(buckets[7:]))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_part_is_done_once(threads: int) -> None:
    done: list[int] = []
    WorkerPool(threads).run(done.append, 20)
    assert sorted(done) == list(range(20))


def test_parts_run_beside_each_other() -> None:
    """Each waits for the other, which one thread alone could not do."""
    meeting, met = threading.Barrier(2, timeout=60), set[int]()

    def work(_: int) -> None:
        met.add(meeting.wait())

    WorkerPool(2).run(work, 2)
    assert met == {0, 1}


@pytest.mark.parametrize("threads", [1, 3])
def test_what_fails_is_raised_when_all_have_ended(threads: int) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 2:
            raise MemoryError("part 2")
        done.append(number)

    pool = WorkerPool(threads)
    with pytest.raises(MemoryError, match="part 2"):
        pool.run(work, 4)
    pool.run(done.append, 1)
    assert done[-1] == 0
