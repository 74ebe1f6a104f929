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
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 1024,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are reported.")] = 5,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Largest batch.")] = 64,
    policy: Annotated[str, typer.Option(help="The operating point.")] = "balanced",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    load_seconds: Annotated[float, typer.Option(min=0, help="Seconds of each offered load; 0: none.")] = 5.0,
    plot: Annotated[Path | None, typer.Option(help="Draw the result into this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """The engine at saturation and under load, against its device's bound and what is done elsewhere, in one run.

    \b
    Example: msmlp bench engine --data .data/cifar-10-batches-py
    Example: msmlp bench engine --weights weights/mine --max-batch 16 --json
    """
    from msmlp.bench.engine import BenchOptions, bench_engine
    from service.settings import DEFAULT_WEIGHTS

    folder = weights or DEFAULT_WEIGHTS
    options = BenchOptions(folder, data, images, rounds, max_batch, policy, device, dtype, load_seconds)
    result = bench_engine(options, _progress)
    if plot is not None:
        from msmlp.bench.plot import draw_engine

        draw_engine(result, plot)
    if as_json:
        _print_json(result)
        return
    _say(
        f"{result['images']} images of which {_shares(result['exit_share'])} leave at each exit, on {result['device']}"
    )
    for name in ("plain", "bound", "engine"):
        _say(f"{name:10} {result[name + '_images_per_second']:9.0f} images/s")
    for name, speed in result["baselines"].items():
        _say(f"{name:10} {speed:9.0f} images/s")
    _say(f"engine / bound {result['efficiency']:.3f}; host {result['host_us_per_image']:.2f} us an image")
    for row in result["load"]:
        _say(
            f"load {100 * row['load']:3.0f} %: {row['achieved']:7.0f} images/s, p50 {_ms(row['p50_ms'])}, "
            f"p99 {_ms(row['p99_ms'])}, degraded {100 * row['degraded']:.0f} %, shed {100 * row['shed']:.0f} %"
        )


@app.command()
def http(
    files: Annotated[list[Path] | None, typer.Argument(help="Images to send, in turn; without, a photograph.")] = None,
    url: Annotated[str, typer.Option(help="A running service.")] = "http://127.0.0.1:8000",
    connections: Annotated[str, typer.Option(help="Connections at a time, one run each.")] = "1,8,32",
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each run.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Requests a second and latency of a running service, one image a request.

    \b
    Example: msmlp bench http --url http://127.0.0.1:8000
    Example: msmlp bench http photos/*.jpg --connections 1,64 --json
    """
    from model.errors import DataError, OptionError
    from msmlp.bench.http import bench_http
    from msmlp.wire import checked_url

    checked_url(url)
    counts = [text.strip() for text in connections.split(",")]
    if not all(text.isascii() and text.isdigit() and 0 < int(text) <= 1024 for text in counts):
        raise OptionError("--connections", f"{connections!r} is no list of numbers 1 to 1024, as in 1,8,32")
    paths = files or [Path(__file__).parents[2] / "examples" / "cat.jpg"]
    try:
        images = [path.read_bytes() for path in paths]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from None
    numbers = tuple(int(text) for text in counts)
    result = bench_http(url, images, connections=numbers, seconds=seconds, progress=_progress)
    if as_json:
        _print_json(result)
        return
    for row in result["load"]:
        _say(
            f"{row['connections']:4} connections: {row['requests_per_second']:8.1f} requests/s, "
            f"p50 {_ms(row['p50_ms'])}, p95 {_ms(row['p95_ms'])}, p99 {_ms(row['p99_ms'])}, statuses {row['statuses']}"
        )


def _progress(line: str) -> None:
    sys.stderr.write(f"msmlp bench: {line}\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value} ms"


def _shares(shares: list[float]) -> str:
    return " / ".join(f"{100 * share:.0f} %" for share in shares)
