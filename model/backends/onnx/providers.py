"""ONNX Runtime's execution providers: which there are, and sessions that really run on them."""

import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import onnxruntime

from msmlp.model.errors import DeviceError
from msmlp.model.platform.memory import failures


@dataclass(frozen=True)
class Provider:
    """An execution provider with its options; `memory` is what OrtValues call its device."""

    name: str
    device: str
    memory: str
    options: dict[str, str] = field(default_factory=dict)
    halves: dict[str, str] = field(default_factory=dict)
    """More options for float16 graphs."""
    capture: dict[str, str] = field(default_factory=dict)
    """Options that make it replay a batch as one CUDA graph."""


CPU = Provider("CPUExecutionProvider", "cpu", "cpu")
CUDA = Provider(
    "CUDAExecutionProvider",
    "cuda:0",
    "cuda",
    # float32 means float32, as with torch.
    options={"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"},
    capture={"enable_cuda_graph": "1"},
)
TENSORRT = Provider(
    "TensorrtExecutionProvider",
    "cuda:0",
    "cuda",
    # Its own scatter does not write in place; the CUDA provider, which comes after it, has one that does.
    options={"trt_op_types_to_exclude": "ScatterND"},
    halves={"trt_fp16_enable": "1"},
)
BY_NAME = {"cuda": CUDA, "tensorrt": TENSORRT}


@dataclass(frozen=True)
class Session:
    """An open session, and whether it replays CUDA graphs."""

    session: onnxruntime.InferenceSession
    captures: bool


def has_provider(provider: Provider) -> bool:
    """Whether this build of ONNX Runtime has it; whether the machine can run it, only a session tells."""
    return provider.name in onnxruntime.get_available_providers()


def open_session(graph: bytes, provider: Provider, dtype: str = "float32", *, capture: bool = True) -> Session:
    """A session of `graph` on `provider`, with CUDA graphs where ONNX Runtime allows them and `capture` asks for them.

    Raises:
        DeviceError: the provider cannot be loaded: ONNX Runtime would quietly run on the CPU.
    """
    options = {**provider.options, **(provider.halves if dtype == "float16" else {})}
    if capture and provider.capture:
        # That an operation has no place in a CUDA graph is no class of error of its own.
        with suppress(Exception):
            return Session(_open(graph, provider, {**options, **provider.capture}), captures=True)
    return Session(_open(graph, provider, options), captures=False)


@failures()
def _open(graph: bytes, provider: Provider, options: dict[str, str]) -> onnxruntime.InferenceSession:
    settings: Any = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1  # what little runs on the host
    chain: list[Any] = [(provider.name, options)]
    if provider is TENSORRT:
        chain.append((CUDA.name, CUDA.options))
    if provider.memory == "cuda" and has_provider(provider):
        # The libraries that pip installs lie where the system does not look.
        onnxruntime.preload_dlls()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not there, which is said below
        # Without a fallback of its own, of which it would tell on stdout.
        session = onnxruntime.InferenceSession(graph, settings, providers=chain, enable_fallback=0)
    if provider.name not in session.get_providers():
        raise DeviceError(
            f"ONNX Runtime could not load its {provider.name}: the driver or its libraries are missing or too old"
        )
    return session
