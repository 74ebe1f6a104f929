"""`msmlp doctor`: what this machine will use to serve, why, and what is broken."""

import errno
import json
import os
import platform
import re
import shutil
import socket
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import msmlp
from msmlp.model.errors import MsmlpError, install_hint
from msmlp.model.platform import OLDEST_DRIVER, cores, free_host_memory, gpu_driver, gpu_present

if TYPE_CHECKING:
    from msmlp.model.weights import Calibration, Weights
    from msmlp.service.settings import Settings

GIB = 2**30


@dataclass
class Section:
    """One thing that was looked at: its line for people, its facts for --json, and what is wrong with it."""

    name: str
    line: str
    facts: Any
    problems: list[str] = field(default_factory=list)


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
    found, settings = _settings(weights)
    return [
        Section("python", f"{platform.python_version()} ({sys.executable})", platform.python_version()),
        Section("msmlp", msmlp.__version__, msmlp.__version__),
        packages(),
        machine(),
        *torch_and_gpus(),
        nvidia_driver(settings.device if settings is not None else "auto"),
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
    from msmlp.model.weights import load_calibration, load_weights, model_version
    from msmlp.service.operating_points import in_words

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
        known = in_words(facts["operating_points"])
        problems.append(f"{settings.policy!r} is not an operating point; expected one of {known}")
    line = f"{weights.manifest.name}, version {version}, in {settings.weights}: hashes and shapes fit; "
    line += f"{len(file.operating_points)} operating points, from {file.images} images on {file.device}"
    return [Section("weights", line, facts, problems), *_choice(settings, weights, calibration)]


def _choice(settings: "Settings", weights: "Weights", calibration: "Calibration") -> list[Section]:
    """The backend that serving would build, proven on a blank image, and the processes it would start."""
    file = calibration.file
    try:
        from msmlp.model.backends.protocol import black
        from msmlp.model.backends.select import select_backend
        from msmlp.model.backends.settings import BackendSettings
        from msmlp.model.offline import run_every_exit
        from msmlp.service.frontends.layout import layout_here

        wanted = BackendSettings(settings.device, settings.dtype, settings.provider, capacity=1, max_batch=1)
        selected = select_backend(weights, calibration, wanted, settings.backend)
        backend = selected.build()
        run_every_exit(backend, black(backend, 1))
    except ModuleNotFoundError as error:
        return [Section("choice", f"none: {error.name} is missing", None)]  # its own section says what to do
    except (MsmlpError, RuntimeError) as error:  # RuntimeError: a GPU that torch sees but cannot use
        return [Section("choice", "none", None, [f"the model does not run: {' '.join(str(error).split())}"])]
    device = backend.device.partition(":")[0]
    no_gpu = "this build cannot use the GPU" if gpu_present() else "there is no GPU"
    auto = {
        "device": "there is a GPU" if device == "cuda" else no_gpu,
        "dtype": "half precision on a GPU, float32 on a CPU",
    }
    chosen = {name: getattr(settings, name) for name in auto}
    why = {"backend": selected.why}
    why |= {name: auto[name] if chosen[name] == "auto" else f"set to {chosen[name]}" for name in auto}
    facts = {"backend": backend.name, "device": backend.device, "dtype": backend.dtype, "why": why}
    # "on a CPU" is in the line already, and why a dtype was chosen is in the JSON.
    reasons = [f"{name} {why[name]}" if why[name].startswith("set to") else why[name] for name in ("backend", "device")]
    reasons = [reason.replace(", on a CPU", "") for reason in dict.fromkeys(reasons) if reason != "on a CPU"]
    line = f"{backend.name} on {backend.device}, {backend.dtype}: {' and '.join(reasons)}; it classified a blank image"
    if (file.device.partition(":")[0], file.dtype or backend.dtype) != (device, backend.dtype):
        line += "; calibrated on another device or dtype: run msmlp calibrate here for exact expectations"
    layout = layout_here(settings, backend.name, device, weights, calibration)
    return [Section("choice", line, facts), Section("processes", str(layout), asdict(layout))]


def _ports(settings: "Settings") -> list[Section]:
    found = [_port(settings.host, "port", settings.port)]
    if settings.grpc_port is None:
        return found
    from msmlp.service.grpc import check_installed

    try:
        check_installed()
    except MsmlpError as error:
        return [*found, Section("grpc", "not available", None, [str(error)])]
    return [*found, _port(settings.host, "grpc_port", settings.grpc_port)]


def _port(host: str, setting: str, port: int) -> Section:
    from msmlp.service.settings import option, variable

    address, problems = f"{host}:{port}", []
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = "the address is in use" if error.errno == errno.EADDRINUSE else error.strerror or error
        problems = [f"cannot listen on {address}: {reason}; set another {option(setting)} or {variable(setting)}"]
    line = f"{address} is {'taken' if problems else 'free'}"
    return Section(setting.partition("_")[0], line, {"host": host, setting: port, "free": not problems}, problems)


def packages() -> Section:
    """Versions of what pyproject.toml's extras name; `serve` is needed to serve, with one of `cpu` and `gpu`."""
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in metadata.requires("msmlp") or []:
        parts = re.match(r"([\w.-]+).*extra == [\"'](serve|grpc|cpu|gpu|train)[\"']", requirement)
        if parts:
            extras.setdefault(parts[2], {})[parts[1]] = _version(parts[1])
    missing = [name for name, version in extras.get("serve", {}).items() if version is None]
    words = [
        f"{extra}: " + ", ".join(f"{name} {version or 'missing'}" for name, version in packages.items())
        for extra, packages in extras.items()
    ]
    problems = [f"serving needs {', '.join(missing)}: {install_hint('serve')}"] if missing else []
    return Section("packages", f"\n{'':<10}".join(words), extras, problems)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> Section:
    memory = round(free_host_memory() / GIB, 2)
    line = f"{platform.system()} {platform.machine()}, {cores()} cores, {memory:.1f} GiB of memory available"
    return Section("machine", line, {"cores": cores(), "memory_available_gib": memory})


def torch_and_gpus() -> list[Section]:
    try:
        import torch
    except ImportError as error:
        what_to_do = f"neither ONNX Runtime nor torch is here ({error}): {install_hint('serve', 'cpu')}"
        problems = [] if find_spec("onnxruntime") else [what_to_do]
        return [Section("torch", "missing", None, problems), Section("gpus", "unknown (torch is not installed)", [])]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    facts = {"version": torch.__version__, "build": build, "threads": torch.get_num_threads()}
    gpus = [
        {"name": torch.cuda.get_device_name(i), "memory_gib": torch.cuda.get_device_properties(i).total_memory / GIB}
        for i in range(torch.cuda.device_count())
    ]
    if gpus:
        line = ", ".join(f"{gpu['name']} ({gpu['memory_gib']:.0f} GiB)" for gpu in gpus)
    elif torch.version.cuda is None:
        driver = f"; nvidia-smi is here, install a build for it: {install_hint('serve', 'gpu')}"
        line = f"none: this torch is a CPU build{driver if shutil.which('nvidia-smi') else ''}"
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        line = f"none: CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}"
    else:
        line = "none: torch finds no driver or no device (see nvidia-smi)"
    words = f"{torch.__version__}, {build} build, {facts['threads']} threads"
    return [Section("torch", words, facts), Section("gpus", line, gpus)]


def nvidia_driver(device: str) -> Section:
    """NVIDIA's driver; one that is too old is a problem where a build for GPUs was installed to use it."""
    found = gpu_driver()
    if found is None:
        return Section("driver", "none that nvidia-smi finds", None)
    if int(found.partition(".")[0]) >= OLDEST_DRIVER:
        return Section("driver", f"{found} of NVIDIA", found)
    wanted = f"CUDA 13 needs {OLDEST_DRIVER} or newer"
    wrong = f"NVIDIA's driver {found} is too old, {wanted}: update it, or serve with --device cpu"
    problems = [wrong] if device != "cpu" and _for_gpus() and not _torch_sees_a_gpu() else []
    return Section("driver", f"{found} of NVIDIA; {wanted}", found, problems)


def _for_gpus() -> bool:
    """Whether a build for GPUs is installed."""
    return _version("onnxruntime-gpu") is not None or "+cpu" not in (_version("torch") or "+cpu")


def _torch_sees_a_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()  # with CUDA's own libraries for older drivers, or built for an older CUDA
