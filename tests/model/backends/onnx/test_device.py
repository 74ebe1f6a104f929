"""A stage over slabs: nothing but rows of its own is written, and no slab is copied."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from msmlp.model.backends.onnx.device import slab_graphs
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
