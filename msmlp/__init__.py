"""MSMLP: image classification that spends compute only where an image needs it.

`msmlp.load("weights/mine")(images)` classifies in this process, `msmlp.Client(url).classify(images)` through a service;
both give the same `Answer`. Each name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msmlp.client.answer import Answer, ClassProbability, OperatingPoint, Result, ServiceError, Stage, StreamLine
    from msmlp.client.client import AsyncClient, Client
    from msmlp.client.local import Model, load
    from msmlp.model.errors import MsmlpError

    __version__: str

_HOMES = {
    "Answer": "msmlp.client.answer",
    "AsyncClient": "msmlp.client.client",
    "ClassProbability": "msmlp.client.answer",
    "Client": "msmlp.client.client",
    "Model": "msmlp.client.local",
    "MsmlpError": "msmlp.model.errors",
    "OperatingPoint": "msmlp.client.answer",
    "Result": "msmlp.client.answer",
    "ServiceError": "msmlp.client.answer",
    "Stage": "msmlp.client.answer",
    "StreamLine": "msmlp.client.answer",
    "load": "msmlp.client.local",
}

__all__ = [
    "Answer",
    "AsyncClient",
    "ClassProbability",
    "Client",
    "Model",
    "MsmlpError",
    "OperatingPoint",
    "Result",
    "ServiceError",
    "Stage",
    "StreamLine",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("msmlp")
    if name not in _HOMES:
        raise AttributeError(f"module 'msmlp' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
