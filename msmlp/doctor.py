"""`msmlp doctor`: what this machine will use to serve, why, and what stands in the way."""

import json
import os
import platform
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from msmlp.machine import Section, machine, packages, torch_and_gpus
from msmlp.model.errors import MsmlpError

if TYPE_CHECKING:
    from msmlp.model.weights import Calibration, Weights
    from msmlp.service.settings import Settings


def doctor(
    weights: Annotated[Path | None, typer.Option(help="A weights folder, instead of the default one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Say what this machine will use to serve, and why.

    Exit status 0 when it can serve, 1 when something that serving needs is broken; the last lines say what to do.

    \b
    Examples:
      msmlp doctor
      msmlp doctor --weights weights/mine --json
      MSMLP_PORT=9000 MSMLP_DEVICE=cuda msmlp doctor
    """
    sections = examine(weights)
    problems = [problem for section in sections for problem in section.problems]
    if as_json:
        facts = {section.name: section.facts for section in sections}
        typer.echo(json.dumps({"ok": not problems, "problems": problems, **facts}, indent=1))
    else:
        for section in sections:
            typer.echo(f"{section.name:<9} {section.line}")
        verdict = [f"problem: {problem}" for problem in problems] or ["ready to serve"]
        typer.echo("\n".join(["", *verdict]))
    raise typer.Exit(1 if problems else 0)


def examine(weights: Path | None) -> list[Section]:
    """Look at everything; a section a line of the table."""
    found, settings = _settings(weights)
    return [
        Section("python", f"{platform.python_version()} ({sys.executable})", platform.python_version()),
        Section("msmlp", metadata.version("msmlp"), metadata.version("msmlp")),
        packages(),
        machine(),
        *torch_and_gpus(),
        found,
        *([*_weights(settings), *_ports(settings)] if settings is not None else []),
    ]


def _settings(weights: Path | None) -> tuple[Section, "Settings | None"]:
    """MSMLP_... in the environment; no settings where these are invalid or the package that reads them is missing."""
    given = {name: value for name, value in sorted(os.environ.items()) if name.startswith("MSMLP_")}
    line = ", ".join(f"{name}={value}" for name, value in given.items()) or "no MSMLP_... in the environment"
    try:
        from msmlp.service.settings import load_settings

        return Section("settings", line, given), load_settings(weights=weights)
    except ModuleNotFoundError:
        return Section("settings", f"{line} (not checked)", given), None  # the packages' section says what to do
    except MsmlpError as error:
        return Section("settings", line, given, [f"in the environment: {error}"]), None


def _weights(settings: "Settings") -> list[Section]:
    """What would be served, and what would run it."""
    from msmlp.model.weights import load_calibration, load_weights, model_version

    try:
        weights = load_weights(settings.weights)
        calibration = load_calibration(weights)
    except MsmlpError as error:
        return [Section("weights", f"{settings.weights} cannot be served", None, [str(error)])]
    file = calibration.file
    version = model_version(weights, calibration)
    facts: dict[str, Any] = {
        "folder": str(settings.weights),
        "name": weights.manifest.name,
        "version": version,
        "operating_points": [point.name for point in file.operating_points],
        "calibrated_on": {"device": file.device, "dtype": file.dtype, "images": file.images},
    }
    problems = []
    if settings.policy not in facts["operating_points"]:
        problems.append(
            f"no operating point is called {settings.policy}; there are {', '.join(facts['operating_points'])}"
        )
    line = f"{weights.manifest.name}, version {version}, in {settings.weights}: hashes and shapes fit; "
    line += f"{len(file.operating_points)} operating points, from {file.images} images on {file.device}"
    return [Section("weights", line, facts, problems), _choice(settings, weights, calibration)]


def _choice(settings: "Settings", weights: "Weights", calibration: "Calibration") -> Section:
    """The backend that serving would build, proven on a blank image."""
    file = calibration.file
    try:
        from msmlp.model.backends.select import select_backend
        from msmlp.model.backends.settings import BackendSettings
        from msmlp.model.offline import run_every_exit

        wanted = BackendSettings(settings.device, settings.dtype, settings.provider, capacity=1, max_batch=1)
        selected = select_backend(weights, calibration, wanted, settings.backend)
        backend = selected.build()
        run_every_exit(backend, np.zeros((1, backend.size, backend.size, 3), dtype=np.uint8))
    except ModuleNotFoundError as error:
        return Section("choice", f"none: {error.name} is missing", None)  # its own section says what to do
    except (MsmlpError, RuntimeError) as error:  # RuntimeError: a GPU that torch sees but cannot use
        return Section("choice", "none", None, [f"the model does not run: {' '.join(str(error).split())}"])
    device = backend.device.partition(":")[0]
    auto = {
        "device": "it sees a GPU" if device == "cuda" else "it sees no GPU",
        "dtype": "half precision on a GPU, float32 on a CPU",
    }
    chosen = {name: getattr(settings, name) for name in auto}
    why = {"backend": selected.why}
    why |= {name: auto[name] if chosen[name] == "auto" else f"set to {chosen[name]}" for name in auto}
    facts = {"backend": backend.name, "device": backend.device, "dtype": backend.dtype, "why": why}
    line = f"{backend.name} ({why['backend']}) on {backend.device} ({why['device']}), "
    line += f"{backend.dtype} ({why['dtype']}); a blank image ran"
    if (file.device.partition(":")[0], file.dtype or backend.dtype) != (device, backend.dtype):
        line += "; calibrated on another device or dtype: msmlp calibrate here makes the expectations exact"
    return Section("choice", line, facts)


def _ports(settings: "Settings") -> list[Section]:
    found = [_port(settings.host, "port", settings.port)]
    if settings.grpc_port is None:
        return found
    from msmlp.service.grpc.start import check_installed

    try:
        check_installed()
    except MsmlpError as error:
        return [*found, Section("grpc", "cannot be spoken", None, [str(error)])]
    return [*found, _port(settings.host, "grpc_port", settings.grpc_port)]


def _port(host: str, setting: str, port: int) -> Section:
    address = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    facts = {"host": host, setting: port, "free": True}
    name = setting.partition("_")[0]
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        option = f"--{setting.replace('_', '-')} or MSMLP_{setting.upper()}"
        what_to_do = f"cannot listen on {address} ({error.strerror or error}): set another {option}"
        return Section(name, f"{address} is taken", {**facts, "free": False}, [what_to_do])
    return Section(name, f"{address} is free", facts)
