"""The options of a request as keyword arguments, by the names they have over HTTP."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class Options(TypedDict, total=False):
    """The options of a request; None is not given. docs/http.md says what each means."""

    thresholds: Sequence[float] | str | None
    policy: str | None
    budget_gflops: float | None
    min_accuracy: float | None
    accuracy_floor: float | None
    max_gflops: float | None
    deadline_ms: float | None
    min_exit: int | None
    max_exit: int | None
    top_k: int | None
    degrade: bool | None


def as_text(options: Mapping[str, Any]) -> dict[str, str]:
    """Options as form fields: what a service reads, and a model in-process too, so that both say the same of them."""
    if "stream" in options:
        raise TypeError("stream is no option here: call .stream(images, ...)")
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=_plain)
        for name, value in options.items()
        if value is not None
    }


def _plain(value: Any) -> Any:
    """NumPy's arrays and scalars."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"an option can be no {type(value).__name__}")
