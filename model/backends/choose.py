"""Which backend serves: what `--backend`, `--device` and `--dtype` come to. No torch here until one is built."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from model.backends.gpu import gpu_present
from model.backends.memory import free_host_memory, slot_bytes, slots_that_fit
from model.backends.protocol import StageBackend
from model.config import CascadeConfig
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
    capacity: int | None = None,
    reserve: int = 0,
    max_batch: int = 64,
) -> Callable[[], StageBackend]:
    """What builds the backend, to be called on the thread that will own the device; it can be pickled.

    Args:
        weights: a loaded weights folder.
        calibration: its calibration.
        backend: auto, torch or onnx.
        device: auto, cpu or cuda.
        dtype: auto (bf16 on a GPU, fp32 on a CPU), float32 or bfloat16.
        capacity: images in flight; None for what the device's free memory holds (memory.py), for which building may
            raise DeviceError.
        reserve: slots beyond these.
        max_batch: the largest batch; never more than the capacity.

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
        return partial(
            _onnx_backend,
            weights.manifest.cascade,
            load_graphs(weights, calibration),
            capacity=capacity,
            reserve=reserve,
            max_batch=max_batch,
        )
    if device == "cuda" and not gpu_present():
        raise OptionError("device", "cuda is not available here (there is no GPU); use auto or cpu")
    return partial(
        torch_backend,
        weights,
        temperatures=calibration.file.temperatures,
        exit_policy=calibration.file.exit_policy,
        policy_parameters=calibration.file.exit_policy_parameters,
        device=device,
        dtype=dtype,
        capacity=capacity,
        reserve=reserve,
        max_batch=max_batch,
    )


def torch_backend(
    weights: Weights,
    *,
    temperatures: tuple[float, ...] | None = None,
    exit_policy: str = "max-probability",
    policy_parameters: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    capacity: int | None = None,
    reserve: int = 0,
    max_batch: int = 64,
) -> StageBackend:
    """The torch backend of a device, before or after calibration; without temperatures all are 1.

    Raises:
        OptionError: a device or dtype that is not there.
        DeviceError: no room on the device.
    """
    from model.backends.devices import free_memory, pick_device, pick_dtype

    cascade, where = weights.manifest.cascade, pick_device(device)
    kind = pick_dtype(dtype, where)
    max_batch = min(max_batch, capacity or max_batch)
    slots = _slots(capacity, reserve, max_batch, slot_bytes(cascade, kind.itemsize), free_memory(where))
    if where.type == "cuda" or kind.itemsize < 4:
        from model.backends.drivers import EagerDriver
        from model.backends.staged import StagedBackend

        if where.type == "cuda":
            from model.backends.cuda import CudaDriver

        return StagedBackend(
            weights,
            CudaDriver(where) if where.type == "cuda" else EagerDriver(),
            temperatures=temperatures or (1.0,) * len(cascade.stages),
            exit_policy=exit_policy,
            policy_parameters=policy_parameters,
            dtype=kind,
            capacity=slots,
            max_batch=max_batch,
            in_flight=2 if where.type == "cuda" else 1,
        )
    from model.backends.torch import TorchBackend

    return TorchBackend(
        weights,
        temperatures=temperatures,
        exit_policy=exit_policy,
        policy_parameters=policy_parameters,
        capacity=slots,
        max_batch=max_batch,
    )


def _onnx_backend(
    cascade: CascadeConfig, graphs: tuple[bytes, ...], *, capacity: int | None, reserve: int, max_batch: int
) -> StageBackend:
    from model.backends.onnx import OnnxBackend

    max_batch = min(max_batch, capacity or max_batch)
    slots = _slots(capacity, reserve, max_batch, slot_bytes(cascade, 4), free_host_memory())
    return OnnxBackend(cascade, graphs, capacity=slots, max_batch=max_batch)


def _slots(capacity: int | None, reserve: int, max_batch: int, bytes_a_slot: int, free: int) -> int:
    if capacity is not None:
        return capacity + reserve
    return slots_that_fit(bytes_a_slot, free, max_batch=max_batch, reserve=reserve)
