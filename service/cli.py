"""The serving commands: serve. The web packages are imported inside the commands."""

import inspect
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

try:
    from msmlp.service.settings import REMOVED, Settings
except ModuleNotFoundError:  # without the serving packages the offline commands work; serve says what it misses
    FIELDS: dict[str, FieldInfo] = {}
    REMOVED = {}
else:
    FIELDS = Settings.model_fields

app = typer.Typer(rich_markup_mode=None)

# What these are by default depends on where and on what the service runs, or has no value.
_IN_WORDS = {
    "weights": "weights/cifar10-s",
    "capacity": "from free memory",
    "decode_threads": "number of cores, 2 at least",
    "grpc_port": "none",
}


def serve(**given: Any) -> None:
    """Serve a weights folder over HTTP, until SIGINT or SIGTERM.

    Every option can also stand in the environment: --max-batch as MSMLP_MAX_BATCH. The option wins.

    \b
    Examples:
      msmlp serve --port 9000
      msmlp serve --weights weights/mine --host 0.0.0.0 --policy fast
      MSMLP_PORT=9000 msmlp serve --device cpu --log-level debug
    """
    from msmlp.service.http.server import serve as run
    from msmlp.service.settings import load_settings

    run(load_settings(**given))


def shown_default(name: str, field: FieldInfo) -> str:
    """A setting's default, for people."""
    return _IN_WORDS.get(name, str(field.get_default(call_default_factory=True)))


def limits(field: FieldInfo) -> dict[str, Any]:
    """`min` and `max` of a number, where it has them."""
    return {
        side: getattr(constraint, bound)
        for constraint in field.metadata
        for side, bound in (("min", "ge"), ("max", "le"))
        if hasattr(constraint, bound)
    }


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    # None means not given: the environment and the default come next, which only `load_settings` knows.
    kind: Any = field.annotation
    text = f"{field.description} Default: {shown_default(name, field)}."
    annotation = Annotated[kind | None, typer.Option(help=text, show_default=False, **limits(field))]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _removed_parameter(name: str) -> inspect.Parameter:
    """An option that is parsed, though not in the help, so that `load_settings` can say what to use instead."""
    annotation = Annotated[bool | None, typer.Option(help="Removed.", hidden=True)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


# The options are the settings: a new setting is an option, with its help, without a word here.
_PARAMETERS = [*(_parameter(*item) for item in FIELDS.items()), *map(_removed_parameter, REMOVED)]
serve.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
app.command(context_settings={"ignore_unknown_options": not FIELDS, "allow_extra_args": not FIELDS})(serve)
