"""ONNX Runtime's execution providers: which there are, and sessions that really run on them."""

import os
from dataclasses import dataclass, field
from typing import Any

from model.errors import DeviceError

# See onnx.py.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


@dataclass(frozen=True)
class Provider:
    """An execution provider with its options; `memory` is what OrtValues call its device."""

    name: str
    device: str
    memory: str
    options: dict[str, str] = field(default_factory=dict)
    capture: str | None = None
    """The option that makes it replay a batch as one CUDA graph."""


CPU = Provider("CPUExecutionProvider", "cpu", "cpu")
CUDA = Provider(
    "CUDAExecutionProvider", "cuda:0", "cuda", {"arena_extend_strategy": "kSameAsRequested"}, "enable_cuda_graph"
)
TENSORRT = Provider("TensorrtExecutionProvider", "cuda:0", "cuda", {"trt_fp16_enable": "1"}, "trt_cuda_graph_enable")
BY_NAME = {"cuda": CUDA, "tensorrt": TENSORRT}


@dataclass(frozen=True)
class Session:
    """An open session, and whether it replays CUDA graphs."""

    session: onnxruntime.InferenceSession
    captures: bool


def has_provider(provider: Provider) -> bool:
    """Whether this build of ONNX Runtime has it; whether the machine can run it, only a session tells."""
    return provider.name in onnxruntime.get_available_providers()


def open_session(graph: bytes, provider: Provider) -> Session:
    """A session of `graph` on `provider`, with CUDA graphs where ONNX Runtime allows them.

    Raises:
        DeviceError: the provider cannot be loaded: ONNX Runtime would quietly run on the CPU.
    """
    if provider.capture is not None:
        try:
            options = {**provider.options, provider.capture: "1"}
            return Session(_open(graph, provider, options), captures=True)
        except Exception as error:
            # An operation that has no place in a CUDA graph; ONNX Runtime has no class of its own for that.
            if "graph" not in str(error).lower():
                raise
    return Session(_open(graph, provider, provider.options), captures=False)


def _open(graph: bytes, provider: Provider, options: dict[str, str]) -> onnxruntime.InferenceSession:
    settings: Any = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1  # what little runs on the host
    session = onnxruntime.InferenceSession(graph, settings, providers=[(provider.name, options)])
    if provider.name not in session.get_providers():
        raise DeviceError(
            f"ONNX Runtime could not load its {provider.name}: the driver or its libraries are missing or too old"
        )
    return session
