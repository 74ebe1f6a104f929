"""Which backend serves: what `--backend`, `--device` and `--dtype` come to. No torch here until one is built."""

from collections.abc import Callable
from importlib.util import find_spec

from model.backends.gpu import gpu_present
from model.backends.protocol import StageBackend
from model.errors import OptionError
from model.weights import Calibration, Weights, load_graphs

BACKENDS = ("auto", "torch", "onnx")
PACKAGES = {"torch": "torch", "onnx": "onnxruntime"}


def pick_backend(name: str) -> str:
    """`auto` takes torch where it is installed, else ONNX Runtime; OptionError for one that is not installed."""
    if name not in BACKENDS:
        raise OptionError("backend", f"{name!r} is not one of {', '.join(BACKENDS)}")
    installed = [backend for backend, package in PACKAGES.items() if find_spec(package)]
    if name == "auto" and installed:
        return installed[0]
    if name not in installed:
        missing = PACKAGES.get(name, " or ".join(PACKAGES.values()))
        raise OptionError("backend", f"{name} needs {missing}, not installed here: scripts/install.sh cpu serve")
    return name


def choose_backend(
    weights: Weights,
    calibration: Calibration,
    *,
    backend: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    capacity: int = 1024,
    max_batch: int = 64,
) -> Callable[[], StageBackend]:
    """What builds the backend, to be called on the thread that will own the device.

    Raises:
        OptionError: a backend that is not there, or a device or dtype that it does not know.
        WeightsError: with ONNX Runtime, graphs that are missing, damaged or stale.
    """
    if pick_backend(backend) == "onnx":
        if device not in ("auto", "cpu"):
            raise OptionError(
                "device", f"{device} is not for the onnx backend yet; use auto or cpu, or --backend torch"
            )
        if dtype not in ("auto", "float32"):
            raise OptionError("dtype", f"{dtype} is not for the onnx backend yet; use auto or float32")
        graphs = load_graphs(weights, calibration)

        def build_onnx() -> StageBackend:
            from model.backends.onnx import OnnxBackend

            return OnnxBackend(weights.manifest.cascade, graphs, capacity=capacity, max_batch=max_batch)

        return build_onnx

    if device == "cuda" and not gpu_present():
        raise OptionError("device", "cuda is not available here (there is no GPU); use auto or cpu")

    def build_torch() -> StageBackend:
        from model.backends.torch import TorchBackend

        return TorchBackend(
            weights,
            temperatures=calibration.file.temperatures,
            exit_policy=calibration.file.exit_policy,
            device=device,
            dtype=dtype,
            capacity=capacity,
            max_batch=max_batch,
        )

    return build_torch
