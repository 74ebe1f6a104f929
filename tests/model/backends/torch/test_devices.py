"""The drivers of a CPU and of a GPU; what holds for every backend is in tests/contracts."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend, warm_up
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.torch.backend import StagedBackend
from msmlp.model.backends.torch.devices import CudaDriver, Step, exact, pick_device, threads_for
from msmlp.model.errors import OptionError
from msmlp.model.weights import load_calibration, load_weights

SCRIPT = """
import torch
from msmlp.model.backends.torch.devices import set_threads
torch.set_num_threads(4)
set_threads()
set_threads()
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 2), (16, 15)])
def test_one_core_is_left_to_the_others(cores: int, threads: int) -> None:
    assert threads_for(cores) == threads


@pytest.mark.parametrize(("asked", "threads"), [(None, "3"), ("4", "4")])
def test_the_number_of_threads_can_be_set(asked: str | None, threads: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if asked:
        environment["OMP_NUM_THREADS"] = asked
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == threads


# --- a GPU -----------------------------------------------------------------------------------------------------------

Pixels = NDArray[np.uint8]
Build = Callable[..., StagedBackend]


class Uncaptured(CudaDriver):
    """Calls every operation of a stage itself, as a graph is captured."""

    def replaying(self, step: Step) -> Step:
        def run(stage: int, bucket: int) -> None:
            with exact():
                step(stage, bucket)

        return run


@pytest.fixture
def build(tiny_weights: Path, gpu_or_stand_in: str) -> Build:
    """`build(driver, dtype)`: the torch backend of a GPU."""

    def made(driver: type[CudaDriver] = CudaDriver, dtype: str = "bfloat16") -> StagedBackend:
        settings = BackendSettings(gpu_or_stand_in, dtype, capacity=64, max_batch=16)
        return StagedBackend(load_weights(tiny_weights), settings, driver(torch.device(gpu_or_stand_in)))

    return made


@pytest.fixture
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


def said(backend: StageBackend, pixels: Pixels) -> list[bytes]:
    """Every stage's answers for one batch, to the bit."""
    slots = backend.admit(pixels)
    outputs = [backend.collect(backend.launch(stage, slots)) for stage in range(backend.stages)]
    backend.release(slots)
    return [output.probabilities.tobytes() + output.score.tobytes() for output in outputs]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replay_says_what_the_stage_says_uncaptured(build: Build, pixels: Pixels, dtype: str) -> None:
    """Batches A, B, A, where B is another batch of the same size, a smaller and a larger one."""
    captured, plain = build(dtype=dtype), build(Uncaptured, dtype)
    for a, b in ((16, 16), (16, 3), (3, 16), (1, 1)):
        first, second = pixels[:a], pixels[20 : 20 + b]
        came = [said(captured, batch) for batch in (first, second, first)]
        assert came[0] == came[2]
        assert came[0] != came[1]
        assert came[:2] == [said(plain, batch) for batch in (first, second)]


def test_so_do_two_batches_in_flight(build: Build, pixels: Pixels) -> None:
    backend, plain = build(), build(Uncaptured)
    warm_up(backend)
    slots = backend.admit(pixels[:20])
    handles = [backend.launch(0, slots[start : start + 10]) for start in (0, 10)]
    came = [backend.collect(handle).probabilities for handle in handles]
    theirs = plain.admit(pixels[:20])
    for start, probabilities in zip((0, 10), came, strict=True):
        expected = plain.collect(plain.launch(0, theirs[start : start + 10])).probabilities
        assert probabilities.tobytes() == expected.tobytes()


def test_a_gpu_has_two_batches_in_flight_and_slots_from_its_own_memory(
    tiny_weights: Path, gpu_or_stand_in: str
) -> None:
    weights, driver = load_weights(tiny_weights), CudaDriver(torch.device(gpu_or_stand_in))
    backend = StagedBackend(weights, BackendSettings(gpu_or_stand_in), driver)
    assert backend.in_flight == 2
    assert 64 <= backend.capacity <= 16_384
    assert driver.free_memory() > 2**28


@pytest.mark.gpu
def test_a_gpu_runs_bf16_unless_told_otherwise(tiny_weights: Path) -> None:
    weights = load_weights(tiny_weights)
    settings = BackendSettings("cuda", capacity=64, max_batch=16)
    backend = select_backend(weights, load_calibration(weights), settings, "torch").build()
    assert (backend.device, backend.dtype, backend.in_flight) == ("cuda", "bfloat16", 2)


@pytest.mark.gpu
def test_after_warm_up_no_memory_is_taken(build: Build, pixels: Pixels) -> None:
    """Graphs replay in their own pool, and images arrive in buffers that are always there."""
    backend = build()
    warm_up(backend)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for images in (16, 1, 7):
        said(backend, pixels[:images])
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert pick_device("auto").type == "cpu"
    with pytest.raises(OptionError, match="torch sees no GPU: msmlp doctor says more"):
        pick_device("cuda")
