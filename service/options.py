"""The options of a request, by the same names in the query, in form fields and in a JSON body."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msmlp.model.errors import OptionError

SELECTORS = ("thresholds", "policy", "budget_gflops", "min_accuracy")


@dataclass(frozen=True)
class RequestOptions:
    """Options as the client gave them; None where it gave none. Ranges that depend on the model are checked later."""

    thresholds: tuple[float, ...] | None = None
    policy: str | None = None
    budget_gflops: float | None = None
    min_accuracy: float | None = None
    max_gflops: float | None = None
    min_exit: int | None = None
    max_exit: int | None = None
    top_k: int | None = None
    accuracy_floor: float | None = None
    deadline_ms: float | None = None
    degrade: bool | None = None
    stream: bool | None = None


NO_OPTIONS = RequestOptions()


def parse_options(given: Mapping[str, Any]) -> RequestOptions:
    """Read raw values (text, or JSON values).

    Raises:
        OptionError: an unknown option, a value of the wrong kind or range, options that exclude each other.
    """
    if not given:
        return NO_OPTIONS
    values: dict[str, Any] = {}
    for name, raw in given.items():
        if name not in _PARSERS:
            raise OptionError(ascii(name[:40]), f"no such option; there are {', '.join(_PARSERS)}")
        values[name] = _PARSERS[name](name, raw)
    chosen = [name for name in SELECTORS if name in values]
    if len(chosen) > 1:
        raise OptionError(chosen[1], f"give only one of {', '.join(SELECTORS)}; {chosen[0]} is given too")
    if "accuracy_floor" in values and "thresholds" in values:
        raise OptionError("accuracy_floor", "does not go with thresholds, which brown-out never changes")
    return RequestOptions(**values)


def _number(name: str, raw: Any, low: float, high: float, allowed: str) -> float:
    try:
        if isinstance(raw, bool):
            raise ValueError
        value = float(raw)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(name, f"is no number; allowed: {allowed}") from None
    if math.isnan(value) or not low <= value <= high:
        raise OptionError(name, f"{value:g} is out of range; allowed: {allowed}")
    return value


def _gflops(name: str, raw: Any) -> float:
    return _number(name, raw, 0, math.inf, "a number of GFLOPs, 0 or more")


def _accuracy(name: str, raw: Any) -> float:
    return _number(name, raw, 0, 1, "0 to 1")


def _count(name: str, raw: Any) -> int:
    allowed = "a whole number, 1 to 1e9"
    value = _number(name, raw, 1, 1e9, allowed)
    if value != int(value):
        raise OptionError(name, f"is no whole number; allowed: {allowed}")
    return int(value)


def _milliseconds(name: str, raw: Any) -> float:
    return _number(name, raw, 0, 1e9, "milliseconds, 0 to 1e9")


def _flag(name: str, raw: Any) -> bool:
    if isinstance(raw, str):
        raw = {"true": True, "false": False, "1": True, "0": False}.get(raw.strip().lower())
    if not isinstance(raw, bool):
        raise OptionError(name, "is neither true nor false; allowed: true, false")
    return raw


def _text(name: str, raw: Any) -> str:
    if not isinstance(raw, str):
        raise OptionError(name, "is no text; allowed: the name of an operating point")
    return raw


def _thresholds(name: str, raw: Any) -> tuple[float, ...]:
    """`0.9,0.8`, a JSON list as text, or a list."""
    if isinstance(raw, str):
        text = raw.strip()
        if text.startswith("["):
            try:
                raw = json.loads(text)
            except (ValueError, RecursionError):
                raise OptionError(name, "is no JSON list; allowed: numbers 0 to 1, as in 0.9,0.8") from None
        else:
            raw = text.split(",") if text else []
    if not isinstance(raw, list):
        raw = [raw]
    return tuple(_number(name, value, 0, 1, "numbers 0 to 1, one an exit but the last") for value in raw)


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "thresholds": _thresholds,
    "policy": _text,
    "budget_gflops": _gflops,
    "min_accuracy": _accuracy,
    "max_gflops": _gflops,
    "min_exit": _count,
    "max_exit": _count,
    "top_k": _count,
    "accuracy_floor": _accuracy,
    "deadline_ms": _milliseconds,
    "degrade": _flag,
    "stream": _flag,
}
