"""`msmlp calibrate`: validation images through the serving backend, the frontier into the weights folder."""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend, bucket_of, of_stage
from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.calibration.audit import audited
from msmlp.model.calibration.crossfit import fit_temperatures, folds_of, refitted
from msmlp.model.calibration.frontier import JOINT, operating_points, risk_point, solver_frontiers
from msmlp.model.calibration.risk import RiskLimit, risk_limit
from msmlp.model.calibration.solvers import ThresholdSetting, thinned
from msmlp.model.data import Split
from msmlp.model.data.dataset import split_digest
from msmlp.model.errors import WeightsError
from msmlp.model.export.folder import exact_backend, one_core_backend, refresh_graphs
from msmlp.model.offline import audit_images, batch_of, dataset_for, run_every_exit, validation_images
from msmlp.model.weights import OperatingPoint, Weights, load_weights, write_calibration
from msmlp.model.weights.calibration import Audit, CalibrationFile, Table

TIMED_RUNS = 9

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
    """Write a calibration from the validation images of `data`, and export graphs that no longer match it.

    The audit images, if training held any out, are only measured.

    The frontier is solved in `cost`, GFLOPs or milliseconds measured here. `risk` adds an operating point with at most
    this risk, at `confidence` (0.95 by default; model/calibration/risk.py). CallerError for damaged weights, images
    that training did not hold out, or an option out of range.
    """
    limit = risk_limit(risk, confidence)
    weights = load_weights(folder)
    dataset = dataset_for(weights, data)
    validation = validation_images(weights, dataset)
    audit = audit_images(weights, dataset)
    file = calibrate_on(
        weights, validation, audit, device, dtype=dtype, exit_policy=exit_policy, cost=cost, limit=limit
    )
    refresh_graphs(folder, validation)
    return file


def calibrate_on(
    weights: Weights,
    validation: Split,
    audit: Split | None,
    device: str,
    *,
    dtype: str = "auto",
    exit_policy: str = "max-probability",
    cost: Cost = "gflops",
    limit: RiskLimit | None = None,
) -> CalibrationFile:
    """The calibration alone, on loaded images."""
    halves = folds_of(validation.identities, 2)
    # The half that certifies a risk must not influence the scores either.
    fitting = halves == 0 if limit else np.ones(len(validation), dtype=np.bool_)
    batch = batch_of(weights.manifest.cascade)
    settings = BackendSettings(device, dtype, capacity=batch, max_batch=batch)
    plain = Exits((1.0,) * len(weights.manifest.cascade.stages), exit_policy)
    untempered = run_every_exit(exact_backend(weights, replace(settings, exits=plain)), validation.pixels).probabilities
    _check_finite(untempered)
    temperatures = fit_temperatures(untempered[fitting], validation.labels[fitting])
    # Bit for bit what serving computes.
    settings = replace(settings, exits=Exits(temperatures, exit_policy))
    backend = exact_backend(weights, settings)
    outputs = run_every_exit(backend, validation.pixels)
    # One core's times are those of every machine with such cores, however many.
    with one_core_backend(weights, settings) as alone:
        stage_ms, timed = measure_stage_ms(alone, validation.pixels)

    gflops, ms = np.array(weights.manifest.gflops_cumulative), np.cumsum(stage_ms)
    correct = outputs.correct(validation.labels)
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
        solvers={solver: _reached(replace(table, costs=gflops), own) for solver, own in frontiers.items()},
        stage_ms=stage_ms,
        stage_ms_batch_size=timed,
        images=len(validation),
        digest=split_digest(validation),
        device=backend.device,
        dtype=backend.dtype,
        audit=None if audit is None else _audited(points, table, backend, audit),
        files={},
    )
    write_calibration(weights.folder, file, outputs.scores, correct)
    return file


def _check_finite(probabilities: NDArray[np.float32]) -> None:
    for k, bad in enumerate((~np.isfinite(probabilities)).any(axis=2).sum(axis=0).tolist()):
        if bad:
            raise WeightsError(f"stage {k + 1}: NaN or infinite scores for {bad} of {len(probabilities)} pictures")


def _audited(points: list[OperatingPoint], table: Table, backend: StageBackend, images: Split) -> Audit:
    outputs = run_every_exit(backend, images.pixels)
    reached = Table(outputs.scores, outputs.correct(images.labels), table.costs)
    return audited(points, table, reached, split_digest(images))


def _reached(table: Table, frontier: list[ThresholdSetting]) -> list[tuple[float, float]]:
    """Mean cost and accuracy at settings along a frontier."""
    reached = [table.expect(setting.thresholds) for setting in thinned(frontier)]
    return [(each.mean_cost, each.accuracy) for each in reached]


def measure_stage_ms(backend: StageBackend, pixels: NDArray[np.uint8]) -> tuple[tuple[float, ...], int]:
    """Each stage's own milliseconds per image, the median over runs of one batch, and the size of that batch.

    The batch is the largest bucket, or the smallest that takes all `pixels`, which fill it. Every run goes through all
    stages, so that a slow moment of the machine does not fall on one stage alone.
    """
    batch = bucket_of(backend.buckets, min(len(pixels), backend.buckets[-1]))
    slots = backend.admit(pixels[np.arange(batch) % len(pixels)])
    runs = [[_launch_ms(backend, stage, slots) for stage in range(backend.stages)] for _ in range(TIMED_RUNS + 1)]
    backend.release(slots)
    # The first run warms up.
    return tuple(statistics.median(stage) / batch for stage in zip(*runs[1:], strict=True)), batch


def _launch_ms(backend: StageBackend, stage: int, slots: NDArray[np.int64]) -> float:
    start = time.perf_counter()
    with of_stage(stage):
        backend.collect(backend.launch(stage, slots))
    return 1000 * (time.perf_counter() - start)
