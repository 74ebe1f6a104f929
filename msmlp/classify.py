"""`msmlp classify`: picture files through a running service, or in this process."""

import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from msmlp.model.errors import OptionError
from msmlp.requests import File, in_requests

if TYPE_CHECKING:
    from msmlp.answer import Answer, OperatingPoint, Result
    from msmlp.client import Client
    from msmlp.local import Model
    from msmlp.options import Options

Caller: TypeAlias = "Client | Model"
Row: TypeAlias = "tuple[int, Result, OperatingPoint | None]"
"""Which file, what was said of it, and with which thresholds, once that is known."""


def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files; - is standard input.")],
    url: Annotated[
        str | None, typer.Option(help="A running service, as http://127.0.0.1:8000; without, this process classifies.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A weights folder, for this process. Default: the shipped one.")
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(metavar="0.9,0.8", help="Leave at an exit from this score on; 0: always, 1: never.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="An operating point: fast, balanced, accurate, or one that msmlp info lists.")
    ] = None,
    budget_gflops: Annotated[
        float | None, typer.Option(help="The best operating point whose mean cost is at most this.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="The cheapest operating point expected to reach this, 0 to 1.")
    ] = None,
    accuracy_floor: Annotated[
        float | None, typer.Option(help="Under overload, stay at or above this expected accuracy.")
    ] = None,
    max_gflops: Annotated[
        float | None, typer.Option(help="Enter no stage that would cost an image more than this.")
    ] = None,
    deadline_ms: Annotated[
        float | None, typer.Option(help="Answer within so many milliseconds, with the best exit reached.")
    ] = None,
    min_exit: Annotated[int | None, typer.Option(help="Leave at no exit before this.")] = None,
    max_exit: Annotated[int | None, typer.Option(help="Leave at this exit at the latest.")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="List so many classes an image. Default: 1; with --json: 5.")
    ] = None,
    degrade: Annotated[
        bool | None, typer.Option("--degrade/--no-degrade", help="Whether overload may change the thresholds.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show each exit of each image as it is reached.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Classify picture files, through a running service or in this process.

    For each: its label, how sure it is, which exit said so and why, what it cost. --json prints the answer that POST
    /classify gives; where more than one request is needed, their results under one index and their latencies added.

    \b
    Examples:
      msmlp classify cat.jpg dog.png
      msmlp classify photos/*.jpg --weights weights/mine --policy fast
      msmlp classify cat.jpg --url http://127.0.0.1:8000 --budget-gflops 0.01
      msmlp classify - --thresholds 0.9,0.8 --json < cat.jpg
    """
    if url is not None and weights is not None:
        raise OptionError("--weights", "a service at --url has its own; give one of the two")
    if stream and as_json:
        raise OptionError("--stream", "shows lines as they come; --json prints one document at the end")
    files = [_file(path) for path in images]
    options: Options = {
        "thresholds": thresholds,
        "policy": policy,
        "budget_gflops": budget_gflops,
        "min_accuracy": min_accuracy,
        "accuracy_floor": accuracy_floor,
        "max_gflops": max_gflops,
        "deadline_ms": deadline_ms,
        "min_exit": min_exit,
        "max_exit": max_exit,
        "top_k": top_k,
        "degrade": degrade,
    }
    with closing(_caller(url, weights)) as caller:
        if as_json:
            typer.echo(json.dumps(_document(caller, files, options)))
        else:
            _print_table(caller, files, _rows(caller, files, options, stream), top=top_k is not None)


def _file(path: Path) -> File:
    if str(path) == "-":
        return File("-", sys.stdin.buffer.read())
    try:
        path.stat()
    except OSError as error:
        raise OptionError(str(path), error.strerror or "cannot be read") from None
    if path.is_dir():
        raise OptionError(str(path), f"is a folder; give its files, as {path}/*.jpg")
    return File(str(path), path)


def _caller(url: str | None, weights: Path | None) -> "Caller":
    if url is not None:
        from msmlp.client import Client

        return Client(url)
    from msmlp.local import load

    return load(weights)


def _document(caller: "Caller", files: Sequence[File], options: "Options") -> dict[str, Any]:
    """The answer to one request; to several, the first's with all results and the sum of the latencies."""
    request_id = uuid.uuid4().hex

    def ask(images: list[bytes]) -> list["Answer"]:
        return [caller.classify(images, request_id=request_id, **options)]

    answers = list(in_requests(ask, files))
    results = [{**result, "index": start + result.index} for start, answer in answers for result in answer.results]
    return {
        **answers[0][1],
        "results": results,
        "latency_ms": round(sum(answer.latency_ms for _, answer in answers), 3),
        "throughput_images_per_second": answers[-1][1].throughput_images_per_second,
    }


def _rows(caller: "Caller", files: Sequence[File], options: "Options", stream: bool) -> Iterator["Row"]:
    if stream:
        for start, line in in_requests(lambda images: caller.stream(images, **options), files):
            yield start + line.index, line, line.get("operating_point")
        return
    for start, answer in in_requests(lambda images: [caller.classify(images, **options)], files):
        for result in answer.results:
            yield start + result.index, result, answer.operating_point


def _print_table(caller: "Caller", files: Sequence[File], rows: Iterator["Row"], *, top: bool) -> None:
    from msmlp.table import Table

    table: Table | None = None
    point: OperatingPoint | None = None
    last: list[Result] = []
    for index, result, chosen in rows:
        if table is None:  # not before something went well
            table = Table([file.name for file in files], caller.model(), sys.stdout.encoding, top=top)
            typer.echo(table.header())
        typer.echo(table.row(index, result))
        if result.reason != "goes_on":
            last.append(result)
        point = chosen or point
    if table is not None and point is not None:
        typer.echo(table.summary(last, point))
