"""`msmlp calibrate`: validation images through the serving backend, the frontier into the weights folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.backends.choose import torch_backend
from model.backends.protocol import StageBackend
from model.calibration.crossfit import folds_of
    halves = folds_of(validation.identities, 2)
    # A half that certifies a risk has no say in the scores either.
    fitting = np.flatnonzero(halves == 0) if limit else np.arange(len(validation))
    backend, temperatures, parameters, outputs = _fitted(build, validation, fitting, exit_policy)
    stage_ms = measure_stage_ms(backend, validation.pixels)

    gflops, ms = np.array(weights.manifest.gflops_cumulative), np.cumsum(stage_ms)
    correct = outputs.predictions == validation.labels[:, None]
    table = Table(outputs.scores, correct, ms if cost == "ms" else gflops)
    frontiers = solver_frontiers(table)
    points = operating_points(table, frontiers[JOINT], folds_of(validation.identities), gflops, ms)
    if limit:
        points.append(risk_point(table, halves, limit, gflops, ms))
        points.sort(key=lambda point: float(np.array(point.exit_share) @ table.costs))
    file = CalibrationFile(
        format=1,
        model_sha256=weights.sha256,
        exit_policy=exit_policy,
        exit_policy_parameters=parameters,
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


def _fitted(
    build: Build, validation: Split, fitting: NDArray[np.int64], exit_policy: str
) -> tuple[StageBackend, tuple[float, ...], dict[str, Any], Outputs]:
    """Temperatures and policy parameters from the images `fitting` → the backend that serves with them, both, and what it
    says of all images: to the bit what serving computes."""
    untempered = run_every_exit(build(None, PLAIN, {}), validation.pixels).probabilities
    temperatures = fit_temperatures(untempered[fitting], validation.labels[fitting])
    backend = build(temperatures, PLAIN if exit_policy in FITTED else exit_policy, {})
    outputs = run_every_exit(backend, validation.pixels)
    parameters = fit_policy(exit_policy, outputs.probabilities[fitting], validation.labels[fitting])
    if parameters:
        backend = build(temperatures, exit_policy, parameters)
        outputs = run_every_exit(backend, validation.pixels)
    return backend, temperatures, parameters, outputs


def _for_the_record(
    table: Table, frontiers: dict[str, list[Setting]], gflops: NDArray[np.float64]
) -> dict[str, list[tuple[float, float]]]:
    def point(setting: Setting) -> tuple[float, float]:
        got = expectation(table.scores, table.correct, gflops, np.array(setting.thresholds))
        return got.mean_gflops, got.accuracy

    return {solver: [point(s) for s in thinned(own)] for solver, own in frontiers.items()}
