"""The command line of `msmlp bench`. Heavy imports happen inside the commands."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="bench", no_args_is_help=True, rich_markup_mode=None, help="Measure throughput and latency, with baselines."
)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command()
def engine(
    weights: Annotated[Path | None, typer.Option(help="A weights folder.", show_default="the shipped one")] = None,
    data: Annotated[Path | None, typer.Option(help="A data set; its test images are used.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 2048,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are reported.")] = 5,
    max_batch: Annotated[str, typer.Option(help="Largest batches, one measurement each.")] = "16,64,256",
    policy: Annotated[str, typer.Option(help="The operating point.")] = "balanced",
    backend: Annotated[str, typer.Option(help="torch or onnx.")] = "torch",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, or one that the backend knows.")] = "auto",
    engine: Annotated[str, typer.Option(help="Of the service under load: auto, thread or process.")] = "auto",
    load_seconds: Annotated[float, typer.Option(min=0, help="Seconds of each offered load; 0: none.")] = 10.0,
    plot: Annotated[Path | None, typer.Option(help="Draw the result into this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """The engine at saturation and under load, against its device's bound and what is done elsewhere, in one run.

    What the JSON document says outside its list of caps is of batches up to 64, or of the first cap given.

    \b
    Example: msmlp bench engine --data .data/cifar-10-batches-py
    Example: msmlp bench engine --weights weights/mine --max-batch 16 --json
    """
    from itertools import count

    from msmlp.bench.bar import Bar
    from msmlp.bench.engine import BenchOptions, bench_engine
    from msmlp.bench.report import engine_lines
    from msmlp.service.settings import DEFAULT_WEIGHTS

    caps = _numbers("--max-batch", max_batch, 4096)
    options = BenchOptions(
        weights or DEFAULT_WEIGHTS,
        data,
        images,
        rounds,
        caps,
        policy,
        device,
        dtype,
        engine,
        load_seconds,
        backend=backend,
    )
    numbers = count(1)
    with Bar() as bar:
        result = bench_engine(options, lambda what: bar.step(what, next(numbers), options.steps))
    if plot is not None:
        from msmlp.bench.plot import draw_engine

        draw_engine(result, plot)
    if as_json:
        _print_json(result)
        return
    for line in engine_lines(result):
        _say(line)


@app.command()
def pair(
    weights: Annotated[Path, typer.Option(help="A weights folder: the cascade.")],
    against: Annotated[Path, typer.Option(help="Another, of a plain Mixer for instance.")],
    data: Annotated[Path | None, typer.Option(help="A data set; its test images are used.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 2048,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are reported.")] = 7,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Largest batch of both.")] = 16,
    policy: Annotated[
        str | None, typer.Option(help="The cascade's operating point.", show_default="the cheapest as accurate")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """A cascade against another network at that one's accuracy: multiply-adds and images/s, in one run.

    \b
    Example: msmlp bench pair --weights weights/cascade --against weights/plain \\
          --data .data/cifar-10-batches-py
    """
    from itertools import count

    from msmlp.bench.bar import Bar
    from msmlp.bench.pair import PairOptions, bench_pair, pair_lines

    options = PairOptions(weights, against, data, images, rounds, max_batch, policy, device, dtype)
    numbers = count(1)
    with Bar() as bar:
        result = bench_pair(options, lambda what: bar.step(what, next(numbers), rounds + 1))
    if as_json:
        _print_json(result)
        return
    for line in pair_lines(result):
        _say(line)


@app.command()
def http(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Images to send, in turn.", show_default="squares of a photograph")
    ] = None,
    url: Annotated[str | None, typer.Option(help="A running service, to be measured alone.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A weights folder.", show_default="the shipped one")] = None,
    connections: Annotated[str, typer.Option(help="Closed loops of so many connections.")] = "1,8,32,128",
    rates: Annotated[
        str, typer.Option(help="Open loops: requests a second, or shares of the closed loop's best; empty: none.")
    ] = "50%,80%",
    bodies: Annotated[str, typer.Option(help="One image a request, a form of 64, a tensor of 1,024 images.")] = (
        "image,multipart-64,oip-1024"
    ),
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each run.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are reported.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Requests a second, latency and CPU time, over real sockets; one image a request, 64, and 1,024 as pixels.

    Starts three servers and stops them at the end: `msmlp serve`; the same with a device that computes nothing (null);
    and the least that a server does, reading, decoding and answering as many bytes (reference). They take turns.
    With --url it measures that service alone. `msmlp serve`'s settings come from the environment.

    \b
    Example: msmlp bench http
    Example: msmlp bench http photos/*.jpg --url http://127.0.0.1:8000 --json
    """
    from msmlp.bench.bar import Bar
    from msmlp.bench.http import bench_http
    from msmlp.bench.http_options import read_options
    from msmlp.bench.http_report import http_lines

    options = read_options(
        files or [],
        url=url,
        weights=weights,
        connections=connections,
        rates=rates,
        bodies=bodies,
        seconds=seconds,
        rounds=rounds,
    )
    with Bar() as bar:
        result = bench_http(options, bar)
    if as_json:
        _print_json(result)
        return
    for line in http_lines(result):
        _say(line)


def _progress(line: str) -> None:
    sys.stderr.write(f"msmlp bench: {line}\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _numbers(option: str, text: str, most: int) -> tuple[int, ...]:
    from msmlp.model.errors import OptionError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= most for part in parts):
        raise OptionError(option, f"{text!r} is no list of numbers 1 to {most}, as in 16,64")
    return tuple(dict.fromkeys(map(int, parts)))
