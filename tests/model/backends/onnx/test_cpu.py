"""What tests/contracts cannot see of the ONNX Runtime backend."""

import os
import subprocess
import sys
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from msmlp.model.backends.onnx import cpu
from msmlp.model.backends.onnx.base import open_sessions
from msmlp.model.backends.onnx.cpu import INSIDE_MS, LARGE, LONG_MS, SMALL, OnnxBackend, WorkerPool, buckets_of, part_of
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.weights import Calibration, load_calibration, load_graphs, load_weights


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


@given(st.integers(1, 5000), st.integers(2, 64))
def test_an_image_of_a_long_stage_is_a_part_by_itself_where_threads_share(bucket: int, threads: int) -> None:
    assert part_of(bucket, threads, long=True) == 1
    assert part_of(bucket, 1, long=True) == part_of(bucket, 1)


@pytest.mark.parametrize(
    ("ms", "share", "parts", "inside"),
    [
        (0.9 * LONG_MS, 1, {7}, 1),
        (1.1 * LONG_MS, 1, {1}, 1),
        (1.1 * LONG_MS, 2, {7}, 1),
        (1.1 * INSIDE_MS, 1, {1}, 2),
        (1.1 * INSIDE_MS, 2, {7}, 1),
    ],
)
def test_parts_and_threads_follow_the_time_of_an_image(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, ms: float, share: int, parts: set[int], inside: int
) -> None:
    asked, ran = list[object](), set[int]()
    monkeypatch.setattr(cpu, "open_sessions", lambda *given, threads: asked.extend(threads) or open_sessions(*given))
    weights, settings = load_weights(tiny_weights), BackendSettings("cpu", capacity=8, share=share)
    calibration = load_calibration(weights)
    given = {"stage_ms": (ms,) * 3, "device": "cpu"}
    calibration = Calibration(calibration.file.model_copy(update=given), calibration.table, calibration.sha256)
    monkeypatch.setattr(cpu, "cores", lambda: 2)
    backend = select_backend(weights, calibration, settings, "onnx").build()
    assert isinstance(backend, OnnxBackend)
    real = backend._run
    monkeypatch.setattr(backend, "_run", lambda stage, rows: ran.add(len(rows)) or real(stage, rows))
    run(backend, np.zeros((7, *weights.manifest.cascade.shape.image), np.uint8))
    assert asked == [inside] * 3
    assert ran == parts


@pytest.mark.parametrize("ms", [2 * LONG_MS, 2 * INSIDE_MS])
@pytest.mark.parametrize("count", [1, 7, 13])
def test_long_stages_answer_as_short_ones_whatever_else_is_in_the_batch(
    tiny_weights: Path, ms: float, count: int
) -> None:
    weights = load_weights(tiny_weights)
    graphs, shape = load_graphs(weights, load_calibration(weights)), weights.manifest.cascade.shape
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape.image), dtype=np.uint8)
    settings = BackendSettings("cpu", capacity=32, threads=2)
    build = partial(OnnxBackend, shape, graphs, settings)
    short, long = (build(stage_ms=[each] * shape.stages) for each in (0.1, ms))
    answers = [run(backend, pixels) for backend in (short, long, long)]
    backwards = run(long, pixels[::-1])
    assert np.allclose(answers[0], answers[1], rtol=0, atol=1e-5)
    assert np.array_equal(answers[1], answers[2])
    assert np.array_equal(answers[1], backwards[:, ::-1])


def run(backend: OnnxBackend, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities of images [N, ...] at every exit, [K, N, classes]."""
    slots = backend.admit(pixels)
    answers = [backend.collect(backend.launch(stage, slots)).probabilities for stage in range(backend.stages)]
    backend.release(slots)
    return np.stack(answers)


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
