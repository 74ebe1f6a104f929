"""What both ONNX Runtime backends share: execution providers, sessions that really run on them, and slots."""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from msmlp.model.backends.protocol import Slots, StageOutput, buckets_up_to, check_pixels, device_errors, of_stage
from msmlp.model.backends.settings import BackendSettings
from msmlp.model.backends.slots import SlotPool
from msmlp.model.errors import DeviceError
from msmlp.model.shape import CascadeShape, parts

log = logging.getLogger("msmlp.engine")


@dataclass(frozen=True)
class Provider:
    """An execution provider with its options; `memory` is OrtValue's name for its device."""

    name: str
    device: str
    memory: str
    options: dict[str, str] = field(default_factory=dict)
    float16_options: dict[str, str] = field(default_factory=dict)
    capture_options: dict[str, str] = field(default_factory=dict)
    """These make it replay a batch as one CUDA graph."""


CPU = Provider("CPUExecutionProvider", "cpu", "cpu")
CUDA = Provider(
    "CUDAExecutionProvider",
    "cuda:0",
    "cuda",
    # float32 means float32, as with torch.
    options={"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"},
    capture_options={"enable_cuda_graph": "1"},
)
TENSORRT = Provider(
    "TensorrtExecutionProvider",
    "cuda:0",
    "cuda",
    # TensorRT's scatter does not write in place; that of the CUDA provider, which comes next, does.
    options={"trt_op_types_to_exclude": "ScatterND"},
    float16_options={"trt_fp16_enable": "1"},
)
BY_NAME = {"cuda": CUDA, "tensorrt": TENSORRT}


@dataclass(frozen=True)
class Session:
    session: onnxruntime.InferenceSession
    captures: bool


def has_provider(provider: Provider) -> bool:
    """Whether this build of ONNX Runtime has it; only a session shows whether the machine can run it."""
    return provider.name in onnxruntime.get_available_providers()


def open_session(
    graph: bytes, provider: Provider, dtype: str = "float32", *, capture: bool = True, threads: int = 1
) -> Session:
    """A session of `graph` on `provider`, with CUDA graphs if `capture` is set and ONNX Runtime allows them; on a CPU
    `threads` share each operation.

    DeviceError if the provider cannot be loaded; ONNX Runtime alone would quietly run on the CPU.
    """
    options = {**provider.options, **(provider.float16_options if dtype == "float16" else {})}
    if not capture or not provider.capture_options:
        return Session(_open(graph, provider, options, threads), captures=False)
    try:
        return Session(_open(graph, provider, {**options, **provider.capture_options}), captures=True)
    except Exception as error:  # an operation that a CUDA graph cannot hold has no error class of its own
        plain = open_session(graph, provider, dtype, capture=False)
        warn_uncaptured(error)
        return plain


def open_sessions(
    graphs: Sequence[bytes], provider: Provider, dtype: str = "float32", threads: Sequence[int] | None = None
) -> list[Session]:
    """A session per stage; `threads` [K] share the operations of each (default: one). A DeviceError names the stage."""
    sessions = []
    for stage, graph in enumerate(graphs):
        with of_stage(stage):
            sessions.append(open_session(graph, provider, dtype, threads=threads[stage] if threads else 1))
    return sessions


def warn_uncaptured(error: Exception) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    log.warning("ONNX Runtime cannot run a stage as a CUDA graph (%s); continuing without", reason)


def closed_options() -> Any:
    """Options of a session that reads no other file: a graph may name some that its folder does not own."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return options


@device_errors()
def _open(graph: bytes, provider: Provider, options: dict[str, str], threads: int = 1) -> onnxruntime.InferenceSession:
    settings = closed_options()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    # Threads wait asleep: decoders and the event loop need the cores too.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chain: list[Any] = [(provider.name, options)]
    if provider is TENSORRT:
        chain.append((CUDA.name, CUDA.options))
    if provider.memory == "cuda" and has_provider(provider):
        # pip installs the CUDA libraries where the system does not look for them.
        onnxruntime.preload_dlls()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a missing provider, which is checked below
        # ONNX Runtime's own fallback would print on stdout.
        session = onnxruntime.InferenceSession(graph, settings, providers=chain, enable_fallback=0)
    if provider.name not in session.get_providers():
        raise DeviceError(
            f"ONNX Runtime could not load its {provider.name}: the driver or its libraries are missing or too old"
        )
    return session


def features_dtype(dtype: str) -> type[np.floating]:
    """The dtype of features in slabs; int8 graphs have 8 bits only inside."""
    return np.float16 if dtype == "float16" else np.float32


class OnnxSlots:
    """Slots with images in the host's memory, and answers that are there when `launch` returns.

    Slabs have one row more than there are slots: padding reads and writes there.
    """

    name, in_flight = "onnx", 1

    def __init__(self, shape: CascadeShape, settings: BackendSettings, free: Callable[[], int]) -> None:
        """Take as many slots as the settings say, or as fit into `free()` bytes."""
        self.dtype = "float32" if settings.dtype == "auto" else settings.dtype
        self.capacity = settings.slots(shape.slot_bytes(np.dtype(features_dtype(self.dtype)).itemsize), free)
        self.stages, self.classes, self.image_shape = shape.stages, shape.classes, shape.image
        self.buckets = buckets_up_to(settings.largest_batch)
        self._pool = SlotPool(self.capacity)
        self._shape, self._parts = shape, parts(shape.views)
        self._views = [np.zeros((self.capacity + 1, size, size, 3), dtype=np.uint8) for size in shape.views]

    def admit(self, pixels: NDArray[np.uint8]) -> Slots:
        check_pixels(pixels, self.image_shape)
        slots = self._pool.take(len(pixels))
        if len(self._views) > 1:
            for slab, part in zip(self._views, self._parts, strict=True):
                slab[slots] = pixels[:, part].reshape(-1, *slab.shape[1:])
        elif len(slots) == 1:
            self._views[0][slots.item()] = pixels[0]  # a third of the time
        else:
            self._views[0][slots] = pixels
        return slots

    def collect(self, handle: StageOutput) -> StageOutput:
        return handle

    def release(self, slots: Slots) -> None:
        self._pool.give(slots)
