"""A stage over slabs: nothing but rows of its own is written, no slab is copied, and a CUDA graph changes no answer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from msmlp.model.backends.onnx import base
from msmlp.model.backends.onnx.base import CPU, CUDA, Provider, Session, has_provider
from msmlp.model.backends.onnx.device import OnnxDeviceBackend, slab_graphs
from msmlp.model.backends.select import select_backend
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.weights import load_calibration, load_graphs, load_weights

SLOTS, ROWS = 9, [7, 2, 4]


@pytest.fixture
def graphs(tiny_weights: Path) -> tuple[bytes, ...]:
    weights = load_weights(tiny_weights)
    return load_graphs(weights, load_calibration(weights))


def test_every_stage_keeps_what_the_next_one_reads(graphs: tuple[bytes, ...]) -> None:
    stages = slab_graphs(graphs)
    assert [(each.reads, each.writes) for each in stages] == [(False, True), (True, True), (True, False)]


def test_the_scatter_writes_its_rows_in_place(graphs: tuple[bytes, ...]) -> None:
    stage = slab_graphs(graphs)[0]
    session = onnxruntime.InferenceSession(stage.graph, providers=["CPUExecutionProvider"])
    plain = onnxruntime.InferenceSession(graphs[0], providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (len(ROWS), 32, 32, 3), dtype=np.uint8)
    features, probabilities = plain.run(["features", "probabilities"], {"pixels": pixels})
    memory = np.full((SLOTS, *features.shape[1:]), 5, dtype=np.float32)
    slab = onnxruntime.OrtValue.ortvalue_from_numpy(memory)
    address = slab.data_ptr()
    binding = session.io_binding()
    binding.bind_cpu_input("pixels", pixels)
    binding.bind_cpu_input("rows", np.array(ROWS))
    binding.bind_ortvalue_input("features_slab", slab)
    binding.bind_ortvalue_output("features_slab_out", slab)
    binding.bind_output("probabilities")
    binding.bind_output("score")
    session.run_with_iobinding(binding)
    kept = slab.numpy()
    assert slab.data_ptr() == address
    np.testing.assert_array_equal(kept[ROWS], features)
    np.testing.assert_array_equal(kept[[row for row in range(SLOTS) if row not in ROWS]], 5)
    np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[1], probabilities)


# --- the backend -----------------------------------------------------------------------------------------------------

Pixels = NDArray[np.uint8]
Build = Callable[..., OnnxDeviceBackend]
# A CPU captures nothing, but it is run as a device that does.
CAPTURING = {"cuda": CUDA, "cpu": replace(CPU, capture_options={"any": "1"})}


@pytest.fixture
def build(tiny_weights: Path, graphs: tuple[bytes, ...], gpu_or_stand_in: str) -> Build:
    """`build(capture_options={})`: the backend of a GPU, whose provider captures unless it is changed so."""

    def made(**changes: Any) -> OnnxDeviceBackend:
        settings = BackendSettings(gpu_or_stand_in, "float32", capacity=64, max_batch=16)
        cascade, provider = (
            load_weights(tiny_weights).manifest.cascade.shape,
            replace(CAPTURING[gpu_or_stand_in], **changes),
        )
        return OnnxDeviceBackend(cascade, graphs, settings, provider)

    return made


@pytest.fixture
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


def said(backend: OnnxDeviceBackend, pixels: Pixels) -> NDArray[np.float32]:
    """The probabilities and scores of every stage for one batch, [K, n, classes + 1]."""
    slots = backend.admit(pixels)
    outputs = [backend.collect(backend.launch(stage, slots)) for stage in range(backend.stages)]
    backend.release(slots)
    return np.stack([np.concatenate([each.probabilities, each.score[:, None]], axis=1) for each in outputs])


def test_a_replay_says_what_the_stage_says_uncaptured(
    build: Build, pixels: Pixels, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches A, B, A, where B is another batch of the same size, a smaller and a larger one."""
    captured, plain = build(), build(capture_options={})
    for a, b in ((16, 16), (16, 3), (3, 16), (1, 1)):
        batches = pixels[:a], pixels[20 : 20 + b], pixels[:a]
        came = [said(captured, batch) for batch in batches]
        assert came[0].tobytes() == came[2].tobytes()
        for batch, found in zip(batches, came, strict=True):
            assert np.allclose(found, said(plain, batch), rtol=0, atol=1e-5)
    assert all(session.captures for session in captured._sessions)
    assert not any(session.captures for session in plain._sessions)
    assert not caplog.messages, "nothing fell back to running uncaptured"


WITHOUT = "ONNX Runtime cannot run a stage as a CUDA graph ({}); continuing without"


def test_a_stage_that_cannot_be_captured_is_said_and_runs_uncaptured(
    build: Build,
    pixels: Pixels,
    gpu_or_stand_in: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = base._open

    def refuses(graph: bytes, provider: Provider, options: dict[str, str], threads: int = 1) -> Any:
        if set(provider.capture_options) & set(options):
            raise RuntimeError("This session cannot use the graph capture feature\nand much more")
        return real(graph, provider, options, threads)

    monkeypatch.setattr(base, "_open", refuses)
    backend = build()
    assert not any(session.captures for session in backend._sessions)
    assert caplog.messages == [WITHOUT.format("This session cannot use the graph capture feature")] * 3
    assert said(backend, pixels[:3]).shape == (3, 3, 11)


class Fails:
    """A session that makes bindings and fails in its first run, as an operation that cannot be captured may."""

    def __init__(self, session: Any) -> None:
        self.io_binding = session.io_binding

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


def test_so_is_one_whose_capture_fails_in_its_first_run(
    build: Build, pixels: Pixels, caplog: pytest.LogCaptureFixture
) -> None:
    backend, plain = build(), build(capture_options={})
    backend._sessions[1] = Session(Fails(backend._sessions[1].session), captures=True)
    for _ in range(2):
        assert np.allclose(said(backend, pixels[:3]), said(plain, pixels[:3]), rtol=0, atol=1e-5)
    assert [session.captures for session in backend._sessions] == [True, False, True]
    assert caplog.messages == [WITHOUT.format("operation not permitted when stream is capturing")]


@pytest.mark.gpu
def test_a_gpu_runs_the_graphs_with_slots_from_its_own_memory(tiny_weights: Path) -> None:
    assert has_provider(CUDA)
    weights = load_weights(tiny_weights)
    settings = BackendSettings("cuda", max_batch=16)
    backend = select_backend(weights, load_calibration(weights), settings, "onnx").build()
    assert (backend.name, backend.device) == ("onnx", "cuda:0")
    assert backend.capacity >= 64
