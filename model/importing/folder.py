"""`msmlp import`: checked graphs, calibrated on pictures, as a weights folder."""

import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.calibration.calibrate import Cost, calibrate_on
from msmlp.model.data import Split
from msmlp.model.data.dataset import split_digest
from msmlp.model.data.loading import load_held_out
from msmlp.model.errors import ConfigError, DataError, DeviceError
from msmlp.model.export.folder import exact_backend, export, refresh_graphs
from msmlp.model.importing.graph import read_graph
from msmlp.model.importing.stages import Preprocessing, cascade_of
from msmlp.model.offline import run_every_exit
from msmlp.model.weights import Weights, load_weights
from msmlp.model.weights.calibration import CalibrationFile
from msmlp.model.weights.manifest import write_imported

MAX_LABELS = 2**22
"""Bytes of a file of class names."""
COMPANY = 8
"""Images that are run together and alone."""
NEAR = 1e-2
"""By how much probabilities may differ then. Rounding makes 1e-5 of it, and 1e-3 in float16."""


@dataclass(frozen=True)
class ImportOptions:
    """What `msmlp import` is told; `preprocessing` has one entry per stage."""

    stages: list[Path]
    preprocessing: list[Preprocessing]
    classes: Path
    data: Path
    out: Path
    gflops: list[float] | None = None
    cost: Cost = "gflops"
    exit_policy: str = "max-probability"
    device: str = "auto"
    int8: bool = False


def import_cascade(options: ImportOptions) -> CalibrationFile:
    """Write a weights folder into `out`, whole or not at all.

    Raises:
        CallerError: a graph, the class names, the pictures or the folder do not fit.
    """
    out = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; expected a new or empty folder")
    names = read_classes(options.classes)
    graphs = [read_graph(path) for path in options.stages]
    cascade = cascade_of(graphs, len(names), options.preprocessing, options.gflops)
    dataset = load_held_out(options.data, cascade.views, names)
    images = dataset.partition(seed=0).validation
    out.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    partial = hidden / out.resolve().name
    partial.mkdir()
    try:
        content = [graph.content for graph in graphs]
        training = _record(options, dataset.source, images)
        write_imported(partial, cascade=cascade, graphs=content, classes=names, training=training)
        made = _calibrated(partial, images, options)
        if options.int8:
            export(partial, "int8", options.data)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return made


def read_classes(path: Path) -> tuple[str, ...]:
    """One class name a line."""
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > MAX_LABELS):
            raise DataError(f"{path} is not a file of at most {MAX_LABELS} bytes; expected one class name a line")
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); expected one class name a line") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from None
    if len(names) < 2:
        found = f"{len(names)} class name{'' if len(names) == 1 else 's'}"
        raise DataError(f"{path} has {found}; expected at least 2, one a line")
    return names


def _record(options: ImportOptions, source: str, images: Split) -> dict[str, Any]:
    """The manifest's `training`: where the graphs come from, and the pictures that calibrate them."""
    return {
        "imported": [path.name for path in options.stages],
        "data": source,
        "validation": {"seed": 0, "images": len(images), "digest": split_digest(images)},
        "audit": {"reason": "the networks were trained elsewhere"},
        "command": shlex.join(["msmlp", *sys.argv[1:]]),
    }


def _calibrated(folder: Path, images: Split, options: ImportOptions) -> CalibrationFile:
    weights = load_weights(folder)
    try:
        _check_runs(weights, images.pixels[np.linspace(0, len(images) - 1, COMPANY).astype(int)])
    except DeviceError as error:
        raise ConfigError(f"ONNX Runtime cannot run these graphs: {error}") from None
    made = calibrate_on(weights, images, None, options.device, exit_policy=options.exit_policy, cost=options.cost)
    refresh_graphs(folder, images)
    return made


def _check_runs(weights: Weights, pixels: NDArray[np.uint8]) -> None:
    """That graphs answer with numbers, and that an image's answer does not depend on its company or on chance."""
    plain = Exits((1.0,) * len(weights.manifest.cascade.stages))
    backend = exact_backend(weights, BackendSettings("cpu", capacity=COMPANY, max_batch=COMPANY, exits=plain))
    together = run_every_exit(backend, pixels).probabilities
    alone = np.concatenate([run_every_exit(backend, image[None]).probabilities for image in pixels])
    for k in range(together.shape[1]):
        if not np.isfinite(together[:, k]).all():
            raise ConfigError(f"stage {k + 1} gives probabilities that are not numbers; expected finite logits")
        apart = float(np.abs(together[:, k] - alone[:, k]).max())
        if apart > NEAR:
            raise ConfigError(
                f"stage {k + 1} says other things of an image alone than among others, by {apart:.2f} in probability; "
                "expected a graph for inference, without dropout or norms over the batch"
            )
