"""The command line of `msmlp bench`. Heavy imports happen inside the commands."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from msmlp.model.errors import CallerError, DataError, OptionError


class _Bench(TyperGroup):
    """Says what replaces `msmlp bench pair` of 0.1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] == ["pair"] and not ctx.resilient_parsing:
            raise CallerError("bench pair was removed in 0.2; use msmlp bench engine --weights DIR for each folder")
        return super().parse_args(ctx, args)


app = typer.Typer(name="bench", cls=_Bench, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _bench() -> None:
    """Measure throughput and latency, with baselines."""


AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Weights = Annotated[Path | None, typer.Option(help="A weights folder.", show_default="the shipped one")]


@app.command()
def engine(
    weights: Weights = None,
    data: Annotated[Path | None, typer.Option(help="A data set; its test images are used.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 2048,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are reported.")] = 5,
    max_batch: Annotated[str, typer.Option(help="Largest batches, one measurement each.")] = "16,64,256",
    policy: Annotated[str, typer.Option(help="The operating point.")] = "balanced",
    backend: Annotated[str, typer.Option(help="auto (the one that would serve), torch or onnx.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, or a dtype of the backend.")] = "auto",
    engine: Annotated[str, typer.Option(help="For the service under load: auto, thread or process.")] = "auto",
    load_seconds: Annotated[float, typer.Option(min=0, help="Seconds per offered load; 0 skips them.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure the engine at saturation and under load, next to its device's bound and other ways to serve.

    In the JSON document, `caps` has a row per --max-batch; the fields outside it are those of the row for 64, or for
    the first one given.

    \b
    Examples:
      msmlp bench engine --data .data/cifar-10-batches-py
      msmlp bench engine --weights weights/mine --max-batch 16 --json
    """
    from msmlp.bench.engine import BenchOptions, bench_engine, engine_lines
    from msmlp.service.settings import load_settings

    settings = load_settings(weights=weights, policy=policy, backend=backend, device=device, dtype=dtype, engine=engine)
    caps = _numbers("--max-batch", max_batch, 4096)
    options = BenchOptions(settings, data, images, rounds, caps, load_seconds)
    result = bench_engine(options, _progress)
    typer.echo(json.dumps(result, indent=1) if as_json else "\n".join(engine_lines(result)))


@app.command()
def http(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Images to send, in turn.", show_default="squares of a photograph")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Measure this running service only.")] = None,
    weights: Weights = None,
    connections: Annotated[str, typer.Option(help="Numbers of connections, one measurement each.")] = "1,8,32,128",
    bodies: Annotated[
        str, typer.Option(help="Request bodies: one image, a form of 64 images, a tensor of 1,024 images.")
    ] = "image,multipart-64,oip-1024",
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per run.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are reported.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure requests per second, latency and CPU time over real sockets.

    Starts servers, measures them in turn and stops them: `msmlp serve`, with its settings from the environment but
    without shedding and brown-out, and the same with a device that computes nothing (null), with one front end and
    with two. With --url it measures that service only. A key that a service asks for comes from MSMLP_API_KEY. Forms
    are sent over 4 connections at most, tensors over 2.

    \b
    Examples:
      msmlp bench http
      msmlp bench http photos/*.jpg --url http://127.0.0.1:8000 --json
    """
    from msmlp.bench.http import HttpOptions, bench_http, http_lines
    from msmlp.bench.images import IMAGES_OF
    from msmlp.client.transport import checked_url

    kinds = _items(bodies)
    if not kinds or not set(kinds) <= IMAGES_OF.keys():
        raise OptionError("--bodies", f"{bodies!r} is not valid; expected a list of {', '.join(IMAGES_OF)}")
    if url is not None and weights is not None:
        raise OptionError("--weights", "a running service has its own; give --url or --weights, not both")
    options = HttpOptions(
        url=None if url is None else checked_url(url),
        weights=weights,
        files=_read(files or []),
        connections=_numbers("--connections", connections, 1024),
        bodies=kinds,
        seconds=seconds,
        rounds=rounds,
    )
    result = bench_http(options, _progress)
    typer.echo(json.dumps(result, indent=1) if as_json else "\n".join(http_lines(result)))


def _progress(line: str) -> None:
    sys.stderr.write(f"msmlp bench: {line}\n")


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",")) if text.strip() else ()


def _numbers(option: str, text: str, most: int) -> tuple[int, ...]:
    parts = _items(text)
    if not parts or not all(part.isascii() and part.isdigit() and 0 < int(part) <= most for part in parts):
        raise OptionError(option, f"{text!r} is not valid; expected numbers from 1 to {most}, as in 16,64")
    return tuple(dict.fromkeys(map(int, parts)))


def _read(files: list[Path]) -> tuple[bytes, ...]:
    try:
        return tuple(path.read_bytes() for path in files)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
