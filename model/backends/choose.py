"""Which backend serves: what `--backend`, `--device`, `--dtype` and `--provider` come to. No torch here until one is
built."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec

from msmlp.model.backends.build import onnx_backend, torch_backend
from msmlp.model.backends.gpu import gpu_present
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.race import fastest
from msmlp.model.errors import CallerError, OptionError
from msmlp.model.weights import Calibration, Weights, load_graphs
from msmlp.model.weights.graphs import GRAPH_DTYPES, has_graphs

BACKENDS = ("auto", "torch", "onnx")
PACKAGES = {"torch": "torch", "onnx": "onnxruntime"}
EXTRAS = {"torch": "cpu serve,train", "onnx": "cpu serve"}
TORCH_DTYPES = ("float32", "bfloat16")
PROVIDERS = ("auto", "cuda", "tensorrt")

Build = Callable[[], StageBackend]


def installed_backends(name: str) -> list[str]:
    """`auto` as what is installed; any other as itself. OptionError for one that is not installed."""
    if name not in BACKENDS:
        raise OptionError("backend", f"{name!r} is not one of {', '.join(BACKENDS)}")
    wanted = list(PACKAGES) if name == "auto" else [name]
    installed = [backend for backend in wanted if find_spec(PACKAGES[backend])]
    if not installed:
        missing, extra = " or ".join(PACKAGES[backend] for backend in wanted), EXTRAS[wanted[-1]]
        raise OptionError("backend", f"{name} needs {missing}, not installed here: scripts/install.sh {extra}")
    return installed


@dataclass(frozen=True)
class Candidates:
    """What can serve, by backend, and why others that were asked for cannot."""

    builds: dict[str, Build]
    passed_over: dict[str, str] = field(default_factory=dict)

    @property
    def build(self) -> Build:
        """What builds the one that is faster here, measured when it is called; it can be pickled."""
        return partial(fastest, self.builds, self.passed_over)


def candidates(
    weights: Weights,
    calibration: Calibration,
    *,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    provider: str = "auto",
    capacity: int | None = None,
    reserve: int = 0,
    max_batch: int = 64,
) -> Candidates:
    """What can serve; each build is to be called on the thread that will own the device, and can be pickled.

    Args:
        weights: a loaded weights folder.
        calibration: its calibration.
        backend: auto, torch or onnx.
        device: auto, cpu or cuda.
        dtype: auto (on a GPU bf16 with torch, fp16 with ONNX Runtime where there are such graphs; else fp32), or one by
            name: float32, bfloat16 (torch), float16 and int8 (onnx).
        provider: what ONNX Runtime uses on a GPU: auto (cuda), cuda or tensorrt.
        capacity: images in flight; None for what the device's free memory holds (memory.py), for which building may
            raise DeviceError.
        reserve: slots beyond these.
        max_batch: the largest batch; never more than the capacity.

    Raises:
        OptionError: a backend that is not there, or a device, dtype or provider that it does not know.
        WeightsError: where only ONNX Runtime could serve, graphs that are missing, damaged or stale.
    """
    if provider not in PROVIDERS:
        raise OptionError("provider", f"{provider!r} is not one of {', '.join(PROVIDERS)}")
    names = installed_backends(backend)
    if device == "cuda" and not gpu_present():
        raise OptionError("device", "cuda is not available here (there is no GPU); use auto or cpu")
    slots = {"capacity": capacity, "reserve": reserve, "max_batch": max_batch}
    makers: dict[str, Callable[[], Build]] = {
        "torch": lambda: _torch(weights, calibration, device, dtype, provider, slots),
        "onnx": lambda: _onnx(weights, calibration, device, dtype, provider, slots),
    }
    found: dict[str, Build] = {}
    refused: dict[str, CallerError] = {}
    for name in names:
        try:
            found[name] = makers[name]()
        except CallerError as error:
            refused[name] = error
    if len(refused) == 1 and not found:
        raise refused[names[0]]
    if not found:
        raise OptionError("backend", "; ".join(f"{name}: {error}" for name, error in refused.items()))
    return Candidates(found, {name: str(error) for name, error in refused.items()})


def choose_backend(weights: Weights, calibration: Calibration, **options: object) -> Build:
    """What builds the backend that serves; for options and errors see `candidates`."""
    return candidates(weights, calibration, **options).build  # type: ignore[arg-type]


def _torch(
    weights: Weights, calibration: Calibration, device: str, dtype: str, provider: str, slots: dict[str, int | None]
) -> Build:
    if provider != "auto":
        raise OptionError("provider", f"{provider} is for the onnx backend, not for torch")
    if dtype not in ("auto", *TORCH_DTYPES):
        raise OptionError("dtype", f"{dtype} is not for the torch backend; allowed: auto, {', '.join(TORCH_DTYPES)}")
    return partial(
        torch_backend,
        weights,
        temperatures=calibration.file.temperatures,
        exit_policy=calibration.file.exit_policy,
        device=device,
        dtype=dtype,
        **slots,  # type: ignore[arg-type]
    )


def _onnx(
    weights: Weights, calibration: Calibration, device: str, dtype: str, provider: str, slots: dict[str, int | None]
) -> Build:
    if dtype not in ("auto", *GRAPH_DTYPES):
        raise OptionError("dtype", f"{dtype} is not for the onnx backend; allowed: auto, {', '.join(GRAPH_DTYPES)}")
    chosen = _provider(device, provider)
    if dtype == "auto":
        dtype = "float16" if chosen and has_graphs(weights.folder, "float16") else "float32"
    if dtype == "int8" and chosen:
        raise OptionError("dtype", "int8 graphs are for CPUs; use float16 or float32, or --device cpu")
    graphs = load_graphs(weights, calibration, dtype)
    return partial(onnx_backend, weights.manifest.cascade, graphs, dtype=dtype, provider=chosen, **slots)  # type: ignore[arg-type]


def _provider(device: str, provider: str) -> str | None:
    """The provider of a GPU, None for the CPU."""
    name = "cuda" if provider == "auto" else provider
    if device == "cpu" or (provider == "auto" and not gpu_present()):
        if provider != "auto":
            raise OptionError("provider", f"{provider} needs a GPU; the device is cpu")
        return None
    from msmlp.model.backends.providers import BY_NAME, has_provider

    if has_provider(BY_NAME[name]):
        return name
    if device == "auto" and provider == "auto":
        return None  # a build for CPUs beside a GPU
    raise OptionError(
        "provider" if provider != "auto" else "device",
        f"this build of ONNX Runtime has no {BY_NAME[name].name}: scripts/install.sh gpu serve",
    )
