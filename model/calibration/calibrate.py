"""`msmlp calibrate`: validation images through the serving backend, the frontier into the weights folder.

Graphs contain temperatures and the exit policy, so those that no longer match are exported again.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.backends.staged import StagedBackend
from msmlp.model.calibration.crossfit import folds_of, refitted
from msmlp.model.calibration.frontier import JOINT, operating_points, risk_point, solver_frontiers
from msmlp.model.calibration.risk import RiskLimit, risk_limit
from msmlp.model.calibration.settings import Setting, Table, thinned
from msmlp.model.calibration.temperature import fit_temperatures
from msmlp.model.calibration.timing import measure_stage_ms
from msmlp.model.data import Split, load_dataset
from msmlp.model.data.dataset import split_digest
from msmlp.model.export import refresh_graphs
from msmlp.model.held_out import validation_images
from msmlp.model.offline import run_every_exit
from msmlp.model.weights import Weights, load_weights, write_calibration
from msmlp.model.weights.calibration import CalibrationFile, expectation

BATCH = 256

Cost = Literal["gflops", "ms"]


def calibrate(
    folder: Path,
    data: Path,
    device: str = "auto",
    *,
    dtype: str = "auto",
    exit_policy: str = "max-probability",
    cost: Cost = "gflops",
    risk: float | None = None,
    confidence: float | None = None,
) -> CalibrationFile:
    """Measure the validation images of `data`, write the calibration, and export the graphs that no longer match it.

    Args:
        folder: a weights folder.
        data: the data set of the training.
        device: auto, cpu or cuda.
        dtype: auto, float32 or bfloat16.
        exit_policy: what an exit's score is (model/scores.py).
        cost: what the frontier is solved in: GFLOPs, or milliseconds measured here.
        risk: adds an operating point that loses at most so much (model/calibration/risk.py).
        confidence: the probability with which it does, 0.95 where a risk is given alone.

    Raises:
        WeightsError: a damaged weights folder.
        DataError: not the validation images that training held out.
        OptionError: a device, dtype or exit policy that does not exist, a risk or confidence that can be none.
    """
    limit = risk_limit(risk, confidence)
    weights = load_weights(folder)
    dataset = load_dataset(data, weights.manifest.cascade.image_size)
    validation = validation_images(weights, dataset)
    file = calibrate_on(weights, validation, device, dtype=dtype, exit_policy=exit_policy, cost=cost, limit=limit)
    refresh_graphs(folder, validation)
    return file


def calibrate_on(
    weights: Weights,
    validation: Split,
    device: str,
    *,
    dtype: str = "auto",
    exit_policy: str = "max-probability",
    cost: Cost = "gflops",
    limit: RiskLimit | None = None,
) -> CalibrationFile:
    """The calibration alone, on images already at hand."""

    def build(temperatures: tuple[float, ...] | None) -> StageBackend:
        exits = Exits(temperatures or (1.0,) * len(weights.manifest.cascade.stages), exit_policy)
        return StagedBackend(weights, BackendSettings(device, dtype, capacity=BATCH, max_batch=BATCH, exits=exits))

    halves = folds_of(validation.identities, 2)
    # A half that certifies a risk has no say in the scores either.
    fitting = halves == 0 if limit else np.ones(len(validation), dtype=np.bool_)
    untempered = run_every_exit(build(None), validation.pixels).probabilities
    temperatures = fit_temperatures(untempered[fitting], validation.labels[fitting])
    # To the bit what serving computes.
    backend = build(temperatures)
    outputs = run_every_exit(backend, validation.pixels)
    stage_ms = measure_stage_ms(backend, validation.pixels)

    gflops, ms = np.array(weights.manifest.gflops_cumulative), np.cumsum(stage_ms)
    correct = outputs.predictions == validation.labels[:, None]
    table = Table(outputs.scores, correct, ms if cost == "ms" else gflops)
    frontiers = solver_frontiers(table)
    folds = refitted(exit_policy, untempered, validation.labels, table, folds_of(validation.identities), fitting)
    points = operating_points(table, frontiers[JOINT], folds, gflops, ms)
    if limit:
        points.append(risk_point(table, halves, limit, gflops, ms))
        points.sort(key=lambda point: float(np.array(point.exit_share) @ table.costs))
    file = CalibrationFile(
        format=1,
        model_sha256=weights.sha256,
        exit_policy=exit_policy,
        temperatures=temperatures,
        cost=cost,
        operating_points=tuple(points),
        solvers=_for_the_record(table, frontiers, gflops),
        stage_ms=stage_ms,
        stage_ms_batch_size=backend.buckets[-1],
        images=len(validation),
        digest=split_digest(validation),
        device=backend.device,
        dtype=backend.dtype,
        files={},
    )
    write_calibration(weights.folder, file, outputs.scores, correct)
    return file


def _for_the_record(
    table: Table, frontiers: dict[str, list[Setting]], gflops: NDArray[np.float64]
) -> dict[str, list[tuple[float, float]]]:
    def point(setting: Setting) -> tuple[float, float]:
        got = expectation(table.scores, table.correct, gflops, np.array(setting.thresholds))
        return got.mean_gflops, got.accuracy

    return {solver: [point(s) for s in thinned(own)] for solver, own in frontiers.items()}
