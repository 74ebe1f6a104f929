"""Which backend serves, for `--backend`, `--device`, `--dtype` and `--provider`.

The rule of `--backend auto`, in this order:

- On a GPU: torch, if its build is one for GPUs, else ONNX Runtime.
- On a CPU: ONNX Runtime, if the folder has graphs that match its weights and calibration, else torch.
- An imported cascade: ONNX Runtime.

A backend that is not installed, or cannot do what the other options ask for, is skipped. torch is not imported here:
that takes seconds, and its device belongs to the thread or process that builds the backend.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from importlib.util import find_spec

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.settings import BackendSettings, Exits
from msmlp.model.errors import CallerError, OptionError, install_hint
from msmlp.model.imported import ImportedCascade
from msmlp.model.platform import gpu_present
from msmlp.model.shape import CascadeShape
from msmlp.model.weights import Calibration, Weights, load_graphs
from msmlp.model.weights.graphs import GRAPH_DTYPES, has_graphs

log = logging.getLogger("msmlp.engine")

BACKENDS = ("auto", "torch", "onnx")
PACKAGES = {"torch": "torch", "onnx": "onnxruntime"}
INSTALL = {"torch": install_hint("train"), "onnx": install_hint("serve", "cpu")}
TORCH_DTYPES = ("float32", "bfloat16")
PROVIDERS = ("auto", "cuda", "tensorrt")


@dataclass(frozen=True)
class Selection:
    """The backend that will serve, checked as far as possible without building it.

    Attributes:
        name: torch or onnx.
        device: cpu or cuda, as expected: only the backend itself knows what its library can use.
        why: one line on the choice.
        build: call it on the thread that will own the device. It can be pickled, for an engine in another process.
    """

    name: str
    device: str
    why: str
    build: Callable[[], StageBackend]


def select_backend(
    weights: Weights, calibration: Calibration, settings: BackendSettings, backend: str = "auto"
) -> Selection:
    """Choose the backend `torch` or `onnx`, or by the rule above for `auto`.

    OptionError for a backend that is not installed or cannot use the device, dtype or provider; WeightsError for graphs
    that are missing, damaged or stale, if only ONNX Runtime could serve.
    """
    if backend not in BACKENDS:
        raise OptionError("backend", f"{backend!r} is unknown; expected one of {', '.join(BACKENDS)}")
    if settings.provider not in PROVIDERS:
        raise OptionError("provider", f"{settings.provider!r} is unknown; expected one of {', '.join(PROVIDERS)}")
    _check_gpu(settings.device)
    skipped: dict[str, CallerError] = {}
    for name in _in_order(settings.device, weights) if backend == "auto" else [backend]:
        try:
            if not find_spec(PACKAGES[name]):
                raise OptionError("backend", f"{name} needs {PACKAGES[name]}, not installed here: {INSTALL[name]}")
            found = (_select_torch if name == "torch" else _select_onnx)(weights, calibration, settings)
        except CallerError as error:
            skipped[name] = error
            continue
        if backend != "auto":
            return replace(found, why=f"set to {backend}")
        others = "".join(f"; {other} cannot serve: {error}" for other, error in skipped.items())
        log.info("backend auto: %s, %s%s", name, found.why, others)
        return replace(found, why=f"{found.why}{others}")
    if backend != "auto":
        raise skipped[backend]
    refused = "; ".join(f"{name}: {error}" for name, error in skipped.items())
    raise OptionError("backend", f"no backend can serve; {refused}")


def _in_order(device: str, weights: Weights) -> tuple[str, ...]:
    if isinstance(weights.manifest.cascade, ImportedCascade):
        return ("onnx",)
    return ("torch", "onnx") if device != "cpu" and gpu_present() and _torch_has_gpus() else ("onnx", "torch")


def _torch_has_gpus() -> bool:
    """Whether torch is installed, and not its build for CPUs."""
    try:
        return "+cpu" not in metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False


def _select_torch(weights: Weights, calibration: Calibration, settings: BackendSettings) -> Selection:
    if isinstance(weights.manifest.cascade, ImportedCascade):
        raise OptionError("backend", "torch cannot run an imported cascade; use onnx or auto")
    if settings.provider != "auto":
        raise OptionError("provider", f"{settings.provider} is for the onnx backend, not for torch")
    if settings.dtype not in ("auto", *TORCH_DTYPES):
        allowed = ", ".join(("auto", *TORCH_DTYPES))
        raise OptionError("dtype", f"{settings.dtype} is not for the torch backend; expected one of {allowed}")
    if settings.device == "cuda" and not _torch_has_gpus():
        raise OptionError("device", f"this build of torch has no CUDA: {install_hint('serve', 'gpu')}")
    file = calibration.file
    exits = settings.exits or Exits(file.temperatures, file.exit_policy)
    gpu = settings.device != "cpu" and gpu_present() and _torch_has_gpus()
    return Selection(
        "torch",
        "cuda" if gpu else "cpu",
        "there is a GPU" if gpu else "on a CPU",
        partial(_build_torch, weights, replace(settings, exits=exits)),
    )


def _select_onnx(weights: Weights, calibration: Calibration, settings: BackendSettings) -> Selection:
    dtype = settings.dtype
    if dtype not in ("auto", *GRAPH_DTYPES):
        allowed = ", ".join(("auto", *GRAPH_DTYPES))
        raise OptionError("dtype", f"{dtype} is not for the onnx backend; expected one of {allowed}")
    provider = _provider(settings)
    if dtype == "auto":
        dtype = "float16" if provider and has_graphs(weights.folder, "float16") else "float32"
    if dtype == "int8" and provider:
        raise OptionError("dtype", "int8 graphs are for CPUs; use float16 or float32, or --device cpu")
    graphs = load_graphs(weights, calibration, dtype)
    resolved = _on(provider, dtype, settings)
    return Selection(
        "onnx",
        resolved.device,
        f"the {dtype} graphs match" + ("" if provider else ", on a CPU"),
        partial(_build_onnx, weights.manifest.cascade.shape, graphs, resolved, calibration.file.cpu_ms),
    )


def graphs_backend(shape: CascadeShape, graphs: tuple[bytes, ...], settings: BackendSettings) -> StageBackend:
    """ONNX Runtime over float32 graphs in memory, on the settings' device."""
    if settings.dtype not in ("auto", "float32"):
        raise OptionError("dtype", f"{settings.dtype} is not for an imported cascade; expected auto or float32")
    _check_gpu(settings.device)
    return _build_onnx(shape, graphs, _on(_provider(settings), "float32", settings))


def check_onnx_device(device: str) -> None:
    """OptionError for a device on which ONNX Runtime cannot run here, as far as can be said before it does."""
    _check_gpu(device)
    _provider(BackendSettings(device))


def _check_gpu(device: str) -> None:
    if device == "cuda" and not gpu_present():
        raise OptionError("device", "cuda is not available here (there is no GPU); use auto or cpu")


def _on(provider: str | None, dtype: str, settings: BackendSettings) -> BackendSettings:
    return replace(settings, device="cuda" if provider else "cpu", dtype=dtype, provider=provider or "auto")


def _provider(settings: BackendSettings) -> str | None:
    """The provider for a GPU, None for the CPU."""
    name = "cuda" if settings.provider == "auto" else settings.provider
    if settings.device == "cpu" or (settings.provider == "auto" and not gpu_present()):
        if settings.provider != "auto":
            raise OptionError("provider", f"{name} needs a GPU; the device is cpu")
        return None
    from msmlp.model.backends.onnx.base import BY_NAME, has_provider

    if has_provider(BY_NAME[name]):
        return name
    if settings.device == "auto" and settings.provider == "auto":
        return None  # a GPU, but a build for CPUs
    raise OptionError(
        "provider" if settings.provider != "auto" else "device",
        f"this build of ONNX Runtime has no {BY_NAME[name].name}: {install_hint('serve', 'gpu')}",
    )


def _build_torch(weights: Weights, settings: BackendSettings) -> StageBackend:
    from msmlp.model.backends.torch.backend import StagedBackend

    return StagedBackend(weights, settings)


def _build_onnx(
    shape: CascadeShape,
    graphs: tuple[bytes, ...],
    settings: BackendSettings,
    stage_ms: tuple[float, ...] | None = None,
) -> StageBackend:
    if settings.device == "cpu":
        from msmlp.model.backends.onnx.cpu import OnnxBackend

        return OnnxBackend(shape, graphs, settings, stage_ms=stage_ms)
    from msmlp.model.backends.onnx.device import OnnxDeviceBackend

    return OnnxDeviceBackend(shape, graphs, settings)
