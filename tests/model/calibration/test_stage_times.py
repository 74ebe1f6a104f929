from pathlib import Path

import numpy as np

from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.torch.backend import StagedBackend
from msmlp.model.calibration.calibrate import measure_stage_ms
from msmlp.model.weights import load_weights


def test_every_stage_takes_time_and_no_slot_is_kept(tiny_weights: Path) -> None:
    """Fewer images than the bucket are repeated to fill it."""
    backend = StagedBackend(load_weights(tiny_weights), BackendSettings("cpu", capacity=8))
    stage_ms = measure_stage_ms(backend, np.zeros((3, 32, 32, 3), dtype=np.uint8))
    assert len(stage_ms) == backend.stages
    assert all(ms > 0 for ms in stage_ms)
    assert len(backend.admit(np.zeros((8, 32, 32, 3), dtype=np.uint8))) == 8
