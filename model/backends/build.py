"""Building a backend on a device, with as many slots as fit."""

from msmlp.model.backends.gpu import free_gpu_memory
from msmlp.model.backends.memory import free_host_memory, slot_bytes, slots_that_fit
from msmlp.model.backends.protocol import StageBackend
from msmlp.model.nn.config import CascadeConfig
from msmlp.model.weights import Weights


def torch_backend(
    weights: Weights,
    *,
    temperatures: tuple[float, ...] | None = None,
    exit_policy: str = "max-probability",
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
    from msmlp.model.backends.devices import free_memory, pick_device, pick_dtype

    cascade, where = weights.manifest.cascade, pick_device(device)
    kind = pick_dtype(dtype, where)
    max_batch = min(max_batch, capacity or max_batch)
    slots = _slots(capacity, reserve, max_batch, slot_bytes(cascade, kind.itemsize), free_memory(where))
    if where.type == "cuda" or kind.itemsize < 4:
        from msmlp.model.backends.drivers import EagerDriver
        from msmlp.model.backends.staged import StagedBackend

        if where.type == "cuda":
            from msmlp.model.backends.cuda import CudaDriver

        return StagedBackend(
            weights,
            CudaDriver(where) if where.type == "cuda" else EagerDriver(),
            temperatures=temperatures or (1.0,) * len(cascade.stages),
            exit_policy=exit_policy,
            dtype=kind,
            capacity=slots,
            max_batch=max_batch,
            in_flight=2 if where.type == "cuda" else 1,
        )
    from msmlp.model.backends.torch import TorchBackend

    return TorchBackend(
        weights,
        temperatures=temperatures,
        exit_policy=exit_policy,
        capacity=slots,
        max_batch=max_batch,
    )


def onnx_backend(
    cascade: CascadeConfig,
    graphs: tuple[bytes, ...],
    *,
    dtype: str = "float32",
    provider: str | None = None,
    capacity: int | None = None,
    reserve: int = 0,
    max_batch: int = 64,
) -> StageBackend:
    """The ONNX Runtime backend: of a CPU without a `provider`, of a GPU with `cuda` or `tensorrt`.

    Raises:
        DeviceError: a provider that cannot be loaded; no room on the device.
    """
    max_batch = min(max_batch, capacity or max_batch)
    size = slot_bytes(cascade, 2 if dtype == "float16" else 4)
    if provider is None:
        from msmlp.model.backends.onnx import OnnxBackend

        slots = _slots(capacity, reserve, max_batch, size, free_host_memory())
        return OnnxBackend(cascade, graphs, dtype=dtype, capacity=slots, max_batch=max_batch)
    from msmlp.model.backends.onnx_device import OnnxDeviceBackend
    from msmlp.model.backends.providers import BY_NAME

    slots = _slots(capacity, reserve, max_batch, size, free_gpu_memory())
    return OnnxDeviceBackend(cascade, graphs, BY_NAME[provider], dtype=dtype, capacity=slots, max_batch=max_batch)


def _slots(capacity: int | None, reserve: int, max_batch: int, bytes_a_slot: int, free: int) -> int:
    if capacity is not None:
        return capacity + reserve
    return slots_that_fit(bytes_a_slot, free, max_batch=max_batch, reserve=reserve)
