"""Command-line options made from the fields that describe settings and requests."""

import inspect
from typing import Any, get_args

import typer
from typer.testing import CliRunner

from msmlp.service.cli import request_parameters
from msmlp.service.options import RequestOptions, parse_options, schemas


def test_every_option_of_a_request_is_one_of_the_command_line() -> None:
    parameters = {parameter.name: parameter for parameter in request_parameters()}
    assert list(parameters) == list(RequestOptions.model_fields)
    for name, schema in schemas().items():
        assert get_args(parameters[name].annotation)[1].help == schema["description"]


def test_what_is_written_there_is_read_as_over_http() -> None:
    given: dict[str, Any] = {}

    def classify(**options: Any) -> None:
        given.update({name: value for name, value in options.items() if value is not None})

    classify.__signature__ = inspect.Signature(request_parameters())  # type: ignore[attr-defined]
    app = typer.Typer()
    app.command()(classify)
    written = ["--thresholds", "0.9,0.8", "--max-gflops", "0.5", "--min-exit", "2", "--no-degrade", "--stream"]
    done = CliRunner().invoke(app, written)
    assert done.exit_code == 0, done.output
    assert parse_options(given) == RequestOptions(
        thresholds=(0.9, 0.8), max_gflops=0.5, min_exit=2, degrade=False, stream=True
    )
