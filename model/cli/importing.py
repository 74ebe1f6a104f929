"""`msmlp import`."""

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msmlp.model.cli.common import AsJson, Device, numbers, print_json, say, say_points, warn_of_few_images
from msmlp.model.cli.weights import ExitPolicy
from msmlp.model.errors import OptionError

if TYPE_CHECKING:
    from msmlp.model.importing.stages import Preprocessing
    from msmlp.model.weights.calibration import CalibrationFile

ONCE = "once for all stages, or once for each"
OPTIONS = {"shorter_side": "--resize", "crop_ratio": "--crop-ratio"}
"""What fields of Preprocessing are called on the command line, if not by their names."""


def import_stages(
    stages: Annotated[
        list[Path], typer.Option(metavar="ONNX...", help="One ONNX graph per stage, cheapest first; at most 6.")
    ],
    classes: Annotated[
        Path, typer.Option(help="A text file of class names, one per line, in the order of the outputs.")
    ],
    data: Annotated[
        Path,
        typer.Option(help="Pictures that no stage was trained on: <class>/*, or val/<class>/* and test/<class>/*."),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the weights folder.")],
    more: Annotated[list[Path] | None, typer.Argument(hidden=True, metavar="ONNX", help="The other graphs.")] = None,
    mean: Annotated[
        list[str] | None,
        typer.Option(metavar="R,G,B", help=f"Mean of pixels / 255 per channel, for graphs that take floats; {ONCE}."),
    ] = None,
    std: Annotated[list[str] | None, typer.Option(metavar="R,G,B", help="Standard deviation, likewise.")] = None,
    resize: Annotated[
        list[int] | None,
        typer.Option(min=1, help=f"Pixels that the shorter side is scaled to before the crop (torchvision's); {ONCE}."),
    ] = None,
    crop_ratio: Annotated[
        list[float] | None,
        typer.Option(help="Scale the shorter side to the graph's size / this (timm's crop_pct); instead of --resize."),
    ] = None,
    filter: Annotated[  # noqa: A002 - the option's name
        list[str] | None,
        typer.Option(
            metavar="bicubic|bilinear", help=f"Filter for scaling, antialiased; {ONCE}.", show_default="bicubic"
        ),
    ] = None,
    colours: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RGB|BGR", help=f"The order of channels, also of --mean and --std; {ONCE}.", show_default="RGB"
        ),
    ] = None,
    gflops: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS", help="Multiply-adds / 1e9 of each stage alone; default: counted in the graphs."
        ),
    ] = None,
    cost: Annotated[
        Literal["gflops", "ms"], typer.Option(help="The cost to save: GFLOPs, or milliseconds measured here.")
    ] = "gflops",
    exit_policy: ExitPolicy = "max-probability",
    int8: Annotated[bool, typer.Option("--int8", help="Also write int8 graphs, for serve --dtype int8.")] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Make a weights folder from ONNX graphs of your own, calibrated on your pictures.

    A graph's input is pictures, uint8 or float, [n, 3, size, size] or [n, size, size, 3]; one of its outputs is logits
    or probabilities, [n, classes]. A stage whose graph has an input named upstream reads the output named features of
    the stage before.

    \b
    Examples:
      msmlp import --stages small.onnx large.onnx --classes labels.txt \\
          --data my-photos/val --out weights/mine \\
          --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --crop-ratio 0.875
      msmlp import --stages small.onnx large.onnx --classes labels.txt \\
          --data my-photos/val --out weights/mine \\
          --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --resize 256 --cost ms --int8
    """
    from msmlp.model.importing.folder import ImportOptions, import_cascade

    if more and len(stages) > 1:
        raise OptionError("--stages", "expected once, with all graphs behind it, or once for each")
    graphs = [*stages, *(more or [])]
    said = {
        "mean": mean,
        "std": std,
        "shorter_side": resize,
        "crop_ratio": crop_ratio,
        "filter": filter,
        "colours": colours,
    }
    options = ImportOptions(
        stages=graphs,
        preprocessing=_preprocessing(said, len(graphs)),
        classes=classes,
        data=data,
        out=out,
        gflops=_costs(gflops, len(graphs)),
        cost=cost,
        exit_policy=exit_policy,
        device=device,
        int8=int8,
    )
    with _ended_by_sigterm():
        made = import_cascade(options)
    _say_imported(made, out, as_json)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """As by Ctrl-C, so that nothing is left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _preprocessing(said: dict[str, list[Any] | None], stages: int) -> "list[Preprocessing]":
    """What was said of the pictures, by the fields of Preprocessing, for each of the `stages`; OptionError for what
    cannot be."""
    from msmlp.model.importing.stages import Preprocessing

    if said["shorter_side"] and said["crop_ratio"]:
        raise OptionError("--crop-ratio", "goes without --resize; expected one of them")
    _check_words("--filter", said["filter"], ("bicubic", "bilinear"))
    _check_words("--colours", said["colours"], ("RGB", "BGR"))
    channels = {name: [_numbers(f"--{name}", each, 3) for each in said[name] or []] for name in ("mean", "std")}
    given = {**said, **channels}
    each = {name: _each(OPTIONS.get(name, f"--{name}"), values, stages) for name, values in given.items()}
    rows = ({name: values[k] for name, values in each.items() if values} for k in range(stages))
    return [Preprocessing(**row) for row in rows]


def _costs(text: str | None, stages: int) -> list[float] | None:
    from msmlp.model.imported import MAX_GFLOPS

    if text is None:
        return None
    costs = list(_numbers("--gflops", text, stages))
    if not all(0 < each <= MAX_GFLOPS for each in costs):
        raise OptionError("--gflops", f"expected numbers above 0, up to {MAX_GFLOPS:.0f}")
    return costs


def _say_imported(made: "CalibrationFile", out: Path, as_json: bool) -> None:
    warn_of_few_images(made)
    if as_json:
        told = made.model_dump(mode="json", include={"temperatures", "operating_points", "stage_ms"})
        print_json({"weights": str(out), **told})
        return
    stages = len(made.temperatures)
    say(f"{stages} stages, calibrated on {made.images} pictures, temperatures {numbers(made.temperatures)}")
    say_points(point.model_dump() for point in made.operating_points)
    say(f"{out} is ready: msmlp serve --weights {out}")


def _check_words(option: str, given: list[str] | None, allowed: tuple[str, ...]) -> None:
    for word in given or []:
        if word not in allowed:
            raise OptionError(option, f"{word!r} is unknown; expected one of {', '.join(allowed)}")


def _numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    try:
        found = tuple(float(each) for each in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count or not all(math.isfinite(each) for each in found):
        raise OptionError(option, f"{text!r}; expected {count} numbers with commas between them")
    return found


def _each(option: str, given: list[Any] | None, stages: int) -> list[Any]:
    """One value per stage; none if none was given."""
    if given and len(given) not in (1, stages):
        raise OptionError(option, f"given {len(given)} times; expected once, or once for each of the {stages} stages")
    return given * stages if given and len(given) == 1 else given or []
