"""`msmlp import`: checked graphs, calibrated on pictures, as a weights folder."""

import os
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from msmlp.model.backends.select import check_onnx_device
from msmlp.model.calibration.calibrate import Cost, calibrate_on
from msmlp.model.data import Split
from msmlp.model.data.dataset import split_digest
from msmlp.model.data.loading import load_held_out
from msmlp.model.errors import ConfigError, DataError, DeviceError
from msmlp.model.export.folder import export, refresh_graphs
from msmlp.model.imported import ImportedCascade
from msmlp.model.importing.graph import read_graph
from msmlp.model.importing.stages import Preprocessing, cascade_of
from msmlp.model.importing.trial import check_alone, with_probabilities
from msmlp.model.text import command_line, printable
from msmlp.model.weights import load_weights
from msmlp.model.weights.calibration import CalibrationFile
from msmlp.model.weights.manifest import write_imported

MAX_LABELS = 2**22
"""Bytes of a file of class names."""
COMPANY = 8
"""Pictures that are run together and alone."""


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
    """Write a weights folder into `out`, whole or not at all; lines on stderr say what it does.

    Raises:
        CallerError: a graph, the class names, the pictures or the folder do not fit.
    """
    out = options.out
    _check_out(out, options.data)
    check_onnx_device(options.device)
    names = read_classes(options.classes)
    graphs = [read_graph(path) for path in options.stages]
    cascade = cascade_of(graphs, len(names), options.preprocessing, options.gflops)
    _tell_stages(cascade, options.stages)
    _tell(f"reading the pictures of {options.data}")
    dataset = load_held_out(options.data, cascade.views, names)
    images = dataset.partition(seed=0).validation
    training = _record(options, dataset.source, images)
    content = [graph.content for graph in graphs]
    with _partial(out) as folder, _quiet_runtime():

        def write(cascade: ImportedCascade) -> None:
            write_imported(folder, cascade=cascade, graphs=content, classes=names, training=training)

        write(cascade)
        made = _calibrated(folder, images, options, write)
        if options.int8:
            _tell("writing int8 graphs")
            export(folder, "int8", options.data)
    return made


def _tell(line: str) -> None:
    sys.stderr.write(printable(line) + "\n")


def _tell_stages(cascade: ImportedCascade, files: list[Path]) -> None:
    costs = [stage.gflops for stage in cascade.stages]
    for k, (file, cost) in enumerate(zip(files, costs, strict=True), 1):
        _tell(f"stage {k}: {file}, {cost:.3g} GFLOPs")
    if costs[0] > min(costs):
        _tell(
            "warning: stage 1 costs more than a later one; expected the cheapest first, as all pictures go through it"
        )


def _check_out(out: Path, data: Path) -> None:
    """Before any work: that a folder can be made there, and not among the pictures."""
    try:
        there = out.resolve()
        if out.is_symlink() or there == Path.cwd():
            raise ConfigError(f"{out} is a link or the current folder; expected a new or empty folder")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} exists already; expected a new or empty folder")
        above = next(each for each in there.parents if each.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise ConfigError(f"{out} cannot be made; expected {above} to be a folder that can be written to")
        if there.is_relative_to(data.resolve()):
            raise ConfigError(f"{out} is among the pictures of {data}; expected a folder elsewhere")
    except OSError as error:
        raise ConfigError(f"{out} cannot be made ({error.strerror})") from None


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` at the end, or is removed; an OSError in between is one line."""
    hidden = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}-", dir=out.parent))
        partial = hidden / out.resolve().name
        partial.mkdir()
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        if hidden:
            shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def _quiet_runtime() -> Iterator[None]:
    """Without ONNX Runtime's own lines; a DeviceError, of a graph that it cannot run, becomes a ConfigError."""
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    except DeviceError as error:
        raise ConfigError(f"ONNX Runtime cannot run these graphs: {error}") from None
    finally:
        onnxruntime.set_default_logger_severity(2)


def read_classes(path: Path) -> tuple[str, ...]:
    """One class name a line."""
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > MAX_LABELS):
            raise DataError(f"{path} is not a file of at most {MAX_LABELS} bytes; expected one class name a line")
        names = tuple(line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); expected one class name a line") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from None
    if odd := next((name for name in names if any(unicodedata.category(each) == "Cc" for each in name)), None):
        raise DataError(f"{path} has the class name {odd!r}; expected none with control characters")
    if len(names) < 2:
        found = f"{len(names)} class name{'' if len(names) == 1 else 's'}"
        raise DataError(f"{path} has {found}; expected at least 2, one per line")
    return names


def _record(options: ImportOptions, source: str, images: Split) -> dict[str, Any]:
    """The manifest's `training`: where the graphs come from, and the pictures that calibrate them."""
    return {
        "imported": [path.name for path in options.stages],
        "data": source,
        "validation": {"seed": 0, "images": len(images), "digest": split_digest(images)},
        "audit": {"reason": "the networks were trained elsewhere"},
        "command": command_line(),
    }


def _calibrated(
    folder: Path, images: Split, options: ImportOptions, write: Callable[[ImportedCascade], None]
) -> CalibrationFile:
    """The calibration of the folder; `write` replaces its cascade where answers are found to be probabilities."""
    weights = load_weights(folder)
    pixels = images.pixels[np.linspace(0, len(images) - 1, COMPANY).astype(int)]
    _tell(f"running {COMPANY} pictures alone and together")
    found = with_probabilities(weights, pixels, check_alone(weights, pixels))
    if found != weights.manifest.cascade:
        write(found)
        weights = load_weights(folder)
    _tell(f"calibrating on {len(images)} pictures")
    made = calibrate_on(weights, images, None, options.device, exit_policy=options.exit_policy, cost=options.cost)
    refresh_graphs(folder, images)
    return made
