"""How many front ends, and where the engine runs."""

from typing import Any

import pytest

from msmlp.model.errors import OptionError
from msmlp.service.frontends.layout import MOST_BY_A_GPU, PER_WEIGHT_BYTE, WORKER_BYTES, Layout, divide, resolve
from msmlp.service.settings import Settings

ONNX, TORCH, GPU = ("onnx", "cpu"), ("torch", "cpu"), ("torch", "cuda")


def layout(on: tuple[str, str] = ONNX, cores: int = 4, free: int = 2**40, size: int = 0, **given: Any) -> Layout:
    more = {"platform": given.pop("platform", "linux"), "slowest_ms": given.pop("slowest_ms", 0.0)}
    return resolve(Settings(**given), *on, size, cores=cores, free_memory=free, **more)


@pytest.mark.parametrize(
    ("wanted", "on", "engine"),
    [
        ("auto", ONNX, "inline"),
        ("auto", ("onnx", "cuda"), "process"),
        ("auto", TORCH, "process"),
        ("auto", GPU, "process"),
        ("process", ONNX, "process"),
        ("thread", TORCH, "thread"),
        ("inline", TORCH, "inline"),
    ],
)
def test_the_engine_is_a_process_for_torch_and_for_a_gpu(wanted: str, on: tuple[str, str], engine: str) -> None:
    assert layout(on, engine=wanted).engine == engine


def test_a_stage_that_would_hold_an_event_loop_up_has_a_process() -> None:
    assert layout(slowest_ms=49).engine == "inline"
    assert layout(slowest_ms=51).engine == "process"
    assert layout(slowest_ms=51, engine="inline").engine == "inline"


@pytest.mark.parametrize(
    ("on", "cores", "frontends"),
    [
        (ONNX, 1, 1),
        (ONNX, 2, 2),
        (ONNX, 12, 12),
        (TORCH, 12, 1),
        (GPU, 1, 1),
        (GPU, 8, 4),
        (GPU, 64, MOST_BY_A_GPU),
    ],
)
def test_auto_follows_cores_and_device(on: tuple[str, str], cores: int, frontends: int) -> None:
    assert layout(on, cores).frontends == frontends


def test_auto_takes_no_more_than_memory_allows_and_says_so() -> None:
    free = 4 * WORKER_BYTES
    assert layout(cores=8, free=free).frontends == 3  # slots take a quarter
    assert layout(cores=8, free=free, size=WORKER_BYTES // PER_WEIGHT_BYTE).frontends == 1  # which are as large again
    assert "memory" in layout(cores=8, free=free).why
    assert layout(cores=8, free=0).frontends == 1


def test_auto_leaves_room_for_the_largest_request_in_each() -> None:
    assert layout(cores=8, capacity=8, max_images=4).frontends == 2
    assert layout(cores=8, capacity=3, max_images=4).frontends == 1
    assert layout(cores=8, max_bodies_bytes=300, max_body_bytes=100).frontends == 3
    assert layout(cores=64).frontends == 16
    assert layout(GPU, cores=16, max_bodies_bytes=300, max_body_bytes=100).frontends == 3
    assert "--capacity" in layout(cores=8, capacity=8, max_images=4).why


def test_what_is_set_goes_before_auto() -> None:
    assert layout(TORCH, cores=1, free=0, frontends=3).frontends == 3


def test_an_engine_process_takes_only_so_many_front_ends() -> None:
    with pytest.raises(OptionError, match="80 with an engine process; expected at most 64"):
        layout(frontends=80, engine="process")
    assert layout(frontends=80, engine="inline").frontends == 80


def test_elsewhere_than_on_linux_there_is_one() -> None:
    assert layout(cores=8, platform="darwin").frontends == 1
    assert layout(cores=8, platform="darwin", frontends=4).frontends == 1


def test_limits_are_totals_that_add_up_over_front_ends_with_an_engine_each() -> None:
    settings = Settings(capacity=10, max_bodies_bytes=1000, decode_threads=2, max_connections=100)
    parts = divide(settings, Layout(3, "inline", ""))
    assert [part.capacity for part in parts] == [3, 3, 4]
    assert sum(part.max_bodies_bytes for part in parts) == 1000
    assert sum(part.max_connections for part in parts) == 100
    assert [part.decode_threads for part in parts] == [1, 1, 1]
    assert {(part.frontends, part.engine) for part in parts} == {(1, "inline")}


def test_a_shared_engine_keeps_its_capacity() -> None:
    parts = divide(Settings(capacity=10, max_bodies_bytes=1000), Layout(2, "process", ""))
    assert [(part.capacity, part.max_bodies_bytes) for part in parts] == [(10, 500), (10, 500)]
