"""The drivers of a CPU and of a GPU; what holds for every backend is in tests/contracts."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from msmlp.model.backends.protocol import StageBackend, warm_up
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.torch.devices import threads_for
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


@pytest.fixture
def backend(tiny_weights: Path) -> StageBackend:
    weights = load_weights(tiny_weights)
    settings = BackendSettings("cuda", capacity=64, max_batch=16)
    return select_backend(weights, load_calibration(weights), settings, "torch").build()


@pytest.mark.gpu
def test_a_gpu_runs_bf16_with_two_batches_in_flight(backend: StageBackend) -> None:
    assert (backend.device, backend.dtype, backend.in_flight) == ("cuda", "bfloat16", 2)


@pytest.mark.gpu
def test_after_warm_up_no_memory_is_taken(backend: StageBackend) -> None:
    """Graphs replay in their own pool, and images arrive in buffers that are always there."""
    warm_up(backend)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for images in (16, 1, 7):
        slots = backend.admit(np.zeros((images, 32, 32, 3), dtype=np.uint8))
        for stage in range(backend.stages):
            backend.collect(backend.launch(stage, slots))
        backend.release(slots)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.gpu
def test_a_replay_says_what_the_stage_said_when_it_was_captured(backend: StageBackend) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    slots = backend.admit(pixels)
    first = backend.collect(backend.launch(0, slots[:16]))
    backend.collect(backend.launch(0, slots[16:]))
    again = backend.collect(backend.launch(0, slots[:16]))
    assert first.probabilities.tobytes() == again.probabilities.tobytes()
