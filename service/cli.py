"""`msmlp serve`, and command-line options made from pydantic fields. Web packages are imported when it runs."""

import inspect
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from msmlp.service.options import schemas

try:
    from msmlp.service.settings import REMOVED, Settings
except ModuleNotFoundError:  # without the serving packages offline commands work; serve says what it needs
    FIELDS: dict[str, FieldInfo] = {}
    REMOVED = {}
else:
    FIELDS = Settings.model_fields

app = typer.Typer(rich_markup_mode=None)

_KINDS: dict[str, type] = {"array": str, "string": str, "number": float, "integer": int, "boolean": bool}

# Defaults that depend on the machine, or have no value.
_IN_WORDS = {
    "weights": "weights/cifar10-s",
    "capacity": "from free memory",
    "decode_threads": "number of cores, at least 2",
    "grpc_port": "none",
    "metrics_port": "none",
    "ssl_certfile": "none",
    "ssl_keyfile": "none",
    "cors_origins": "none",
    "api_keys_file": "none",
    "admin_keys_file": "none",
    "devices": "none",
    "direct_port": "none",
}


def serve(**given: Any) -> None:
    """Serve a weights folder over HTTP, until SIGINT or SIGTERM.

    Every option is also an environment variable: --max-batch is MSMLP_MAX_BATCH. The option wins.

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
    return _IN_WORDS.get(name, str(field.get_default(call_default_factory=True)))


def choices(field: FieldInfo) -> tuple[Any, ...]:
    """The words that a setting allows, if it is one of some, or one of some or a number."""
    kinds = field.annotation, *get_args(field.annotation)
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


def limits(field: FieldInfo) -> dict[str, Any]:
    return {
        side: getattr(constraint, bound)
        for constraint in field.metadata
        for side, bound in (("min", "ge"), ("max", "le"))
        if hasattr(constraint, bound)
    }


def parameter_of(name: str, field: FieldInfo) -> inspect.Parameter:
    """A field as an option."""
    # None means not given: the environment and the default come next, which only `load_settings` knows.
    text = f"{field.description} Default: {shown_default(name, field)}."
    kind = str if choices(field) and int in get_args(field.annotation) else field.annotation
    return _parameter(name, kind, text, **limits(field))


def _parameter(name: str, kind: Any, text: str, **more: Any) -> inspect.Parameter:
    annotation = Annotated[kind | None, typer.Option(help=text, show_default=False, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def request_parameters() -> list[inspect.Parameter]:
    """The options of a request as command-line options; the service checks the ranges."""
    return [_parameter(name, _KINDS[schema["type"]], schema["description"]) for name, schema in schemas().items()]


# A new setting is an option, with its help, without a word here.
_PARAMETERS = [parameter_of(*item) for item in FIELDS.items()]
# Parsed, though not in the help, so that `load_settings` can say what to use instead.
_PARAMETERS += [_parameter(name, bool, "Removed.", hidden=True) for name in REMOVED]
serve.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]
app.command(context_settings={"ignore_unknown_options": not FIELDS, "allow_extra_args": not FIELDS})(serve)
