"""The options of a request. Each is written once, here: name, type, range and meaning.

What reads them (query, form fields, JSON, parameters under /v2), the OpenAPI document, the options of the command line
and the table in docs/http.md all follow from these fields.
"""

import json
import math
from collections.abc import Collection, Mapping
from functools import cache
from itertools import combinations
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from msmlp.model.errors import OptionError, first_mistake

SELECTORS = ("thresholds", "policy", "budget_gflops", "min_accuracy")
EXCLUSIVE = (*combinations(SELECTORS, 2), ("accuracy_floor", "thresholds"))
"""Options that are not given together."""
DEFAULT_TOP_K = 5

MAX_TEXT = 1000
"""Characters of an option's value: a hundred times what any needs. Longer ones are refused unread."""


def _number(raw: Any) -> float:
    """A number, as text too. Pydantic alone would read true as 1."""
    try:
        value = math.nan if isinstance(raw, bool) or _too_long(raw) else float(raw)
    except (TypeError, OverflowError):
        value = math.nan
    if math.isnan(value):
        raise ValueError("not a number")
    return value


def _too_long(raw: Any) -> bool:
    return isinstance(raw, str | list | tuple) and len(raw) > MAX_TEXT


def _flag(raw: Any) -> Any:
    return (
        {"true": True, "false": False, "1": True, "0": False}.get(raw.strip().lower()) if isinstance(raw, str) else raw
    )


def _list(raw: Any) -> Any:
    """`0.9,0.8`, a JSON list as text, a list, or a single number."""
    if _too_long(raw):
        raise ValueError("too long")
    if isinstance(raw, str):
        text = raw.strip()
        if not text.startswith("["):
            return text.split(",") if text else []
        try:
            raw = json.loads(text)
        except RecursionError:
            raise ValueError("not a list") from None
    return raw if isinstance(raw, list | tuple) else [raw]


# `SkipJsonSchema`: an option may be missing, but null is not a value of it.
_Null = SkipJsonSchema[None]
_Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_number)]
_Amount = Annotated[float, Field(ge=0), BeforeValidator(_number)]
_Milliseconds = Annotated[float, Field(ge=0, le=10**9), BeforeValidator(_number)]
_Count = Annotated[int, Field(ge=1, le=10**9), BeforeValidator(_number)]
_Flag = Annotated[bool, Field(strict=True), BeforeValidator(_flag)]
_Thresholds = Annotated[tuple[_Share, ...], BeforeValidator(_list)]


class RequestOptions(BaseModel):
    """The options a client gave; None where it gave none. Ranges that depend on the model are checked later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    thresholds: _Thresholds | _Null = Field(
        default=None,
        description="One number per exit except the last, as in 0.9,0.8: an image leaves at an exit when its score is "
        "at least that exit's threshold; 0 always leaves, 1 never. Brown-out does not change them.",
    )
    policy: str | _Null = Field(
        default=None, description="An operating point by name: fast, balanced, accurate, or another of the model's."
    )
    budget_gflops: _Amount | _Null = Field(
        default=None,
        description="The best operating point whose mean cost over the calibration images is at most this many GFLOPs.",
    )
    min_accuracy: _Share | _Null = Field(
        default=None,
        description="The cheapest operating point whose expected accuracy is at least this; brown-out respects it too.",
    )
    max_gflops: _Amount | _Null = Field(
        default=None, description="Hard cap per image: no stage is entered that would exceed this many GFLOPs."
    )
    accuracy_floor: _Share | _Null = Field(
        default=None,
        description="Brown-out keeps the expected accuracy at or above this. Not allowed with thresholds.",
    )
    deadline_ms: _Milliseconds | _Null = Field(
        default=None,
        description="Aim to answer within this many milliseconds of arrival, with the best exit reached by then; best "
        "effort.",
    )
    min_exit: _Count | _Null = Field(
        default=None, description="The first exit an image may leave at, 1 to K; takes priority over the deadline."
    )
    max_exit: _Count | _Null = Field(default=None, description="The last exit an image may reach, 1 to K.")
    top_k: _Count | _Null = Field(default=None, description=f"Classes listed per image. Default: {DEFAULT_TOP_K}.")
    degrade: _Flag | _Null = Field(
        default=None, description="Whether brown-out may change this request's operating point. Default: true."
    )
    stream: _Flag | _Null = Field(
        default=None,
        description="Whether to report each exit of each image as soon as it is reached; over HTTP one line of JSON "
        "each (application/x-ndjson). Default: false.",
    )


NO_OPTIONS = RequestOptions()
_NAMES = tuple(RequestOptions.model_fields)
_KNOWN = frozenset(_NAMES)
_validate = RequestOptions.__pydantic_validator__.validate_python  # model_validate costs a microsecond more


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """The JSON schema of each option, with its description."""
    found: dict[str, dict[str, Any]] = {}
    for name, schema in RequestOptions.model_json_schema()["properties"].items():
        found[name] = {key: value for key, value in schema.items() if key not in ("title", "default")}
    return found


def expected(schema: Mapping[str, Any]) -> str:
    """The values that an option's schema allows, in words."""
    kind = schema["type"]
    if kind == "array":
        return "numbers from 0 to 1, one per exit except the last"
    if kind in ("boolean", "string"):
        return "true or false" if kind == "boolean" else "the name of an operating point"
    noun = "a whole number" if kind == "integer" else "a number"
    if "maximum" not in schema:
        return f"{noun}, {schema['minimum']} or more"
    return f"{noun} from {schema['minimum']} to {schema['maximum']:g}".replace("e+0", "e")


def parse_options(given: Mapping[str, Any]) -> RequestOptions:
    """Read raw values (text, or JSON values).

    Raises:
        OptionError: an unknown option, a value of the wrong kind or out of range, options that exclude each other.
    """
    if not given:
        return NO_OPTIONS
    check_known(given)
    try:
        options: RequestOptions = _validate(given)
    except ValidationError as error:
        raise bad_value(first_mistake(error)[0].partition(".")[0]) from None
    if None in given.values():
        raise bad_value(next(name for name, raw in given.items() if raw is None))
    chosen = [name for name in SELECTORS if name in given]
    if len(chosen) > 1:
        raise OptionError(chosen[1], f"give only one of {', '.join(SELECTORS)}; {chosen[0]} is given too")
    if "accuracy_floor" in given and "thresholds" in given:
        raise OptionError("accuracy_floor", "cannot be combined with thresholds, which brown-out never changes")
    return options


def check_known(given: Collection[str], *others: str) -> None:
    """OptionError for the first name that is neither an option nor one of `others`."""
    if not _KNOWN.issuperset(given):
        unknown = next(name for name in given if name not in _KNOWN)
        raise OptionError(ascii(unknown[:40]), f"no such option; expected one of {', '.join((*others, *_NAMES))}")


def given_twice(name: str) -> OptionError:
    hint = "; a list is one value, as 0.9,0.8" if name == "thresholds" else ""
    return OptionError(ascii(name[:40]), f"given more than once{hint}")


def bad_value(name: str) -> OptionError:
    return OptionError(name, f"expected {expected(schemas()[name])}")
