"""The serving commands: serve. The web packages are imported inside the commands."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def serve(
    weights: Annotated[Path | None, typer.Option(help="A weights folder.", show_default="cifar10-xs")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="8000")] = None,
    backend: Annotated[str | None, typer.Option(help="auto or torch.", show_default="auto")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default="auto")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.", show_default="auto")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Largest batch.", show_default="64")] = None,
    capacity: Annotated[int | None, typer.Option(help="Images in flight.", show_default="1024")] = None,
    policy: Annotated[str | None, typer.Option(help="Default operating point.", show_default="balanced")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Largest width x height.", show_default="32000000")] = None,
    max_images: Annotated[int | None, typer.Option(help="Most images of a request.", show_default="512")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest body.", show_default="64 MiB")] = None,
    decode_threads: Annotated[int | None, typer.Option(help="Threads that decode.", show_default="cores")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug to error.", show_default="info")] = None,
) -> None:
    """Serve a weights folder over HTTP; every option also as MSMLP_... in the environment.

    Example: msmlp serve --port 9000

    Example: msmlp serve --weights weights/mine --host 0.0.0.0 --policy fast
    """
    given = dict(locals())
    from service.server import serve as run
    from service.settings import load_settings

    run(load_settings(**given))
