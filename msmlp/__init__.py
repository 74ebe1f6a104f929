"""MSMLP: image classification that spends compute only where an image needs it.

`msmlp.load("weights/mine")(images)` classifies in this process, `msmlp.Client(url).classify(images)` through a service;
both give the same `Answer`. What needs httpx or a backend is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from msmlp.client.answer import Answer, ClassProbability, OperatingPoint, Result, ServiceError, Stage, StreamLine
from msmlp.model.errors import MissingPackageError, MsmlpError, install_hint

if TYPE_CHECKING:
    from msmlp.client.client import AsyncClient, Client
    from msmlp.client.local import Model, load

    __version__: str

_LAZY = {"AsyncClient": "client", "Client": "client", "Model": "local", "load": "local"}
"""What needs more packages, and the module in msmlp.client that has it."""

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
    if name not in _LAZY:
        raise AttributeError(f"module 'msmlp' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"msmlp.client.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        hint = install_hint("client") if _LAZY[name] == "client" else install_hint("serve", "cpu")
        raise MissingPackageError(f"msmlp.{name} needs the package {error.name}: {hint}", name=error.name) from None


def __dir__() -> list[str]:
    return __all__
