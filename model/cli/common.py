"""What several commands share: options and printing."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msmlp.model.text import accurate, has_own_name, kept, shares

if TYPE_CHECKING:
    from msmlp.model.weights.calibration import CalibrationFile

FEW_IMAGES = 100
"""With fewer validation images, an expected accuracy of 90 % has a standard error above 3 points."""

Data = Annotated[Path, typer.Option(help="Image folder, CIFAR python folder, or its .tar.gz.")]
WeightsFolder = Annotated[Path, typer.Option(help="A weights folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes a GPU if there is one.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="auto is bfloat16 on a GPU, float32 on a CPU.")
]


def print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def say_points(points: Iterable[Mapping[str, Any]]) -> None:
    """Operating points as in `msmlp info --json`, one line each."""
    say("point     accuracy ± s.e.  GFLOPs   ms      share of images at each exit")
    for point in points:
        accuracy = f"{accurate(point['expected_accuracy'], point['standard_error']):>15}"
        ms = "" if point["mean_ms"] is None else f"{point['mean_ms']:.4f}"
        say(f"{point['name']:<9} {accuracy}  {point['mean_gflops']:<8.3g} {ms:<6}  {left(point)}")


def left(point: Mapping[str, Any]) -> str:
    """The share of images at each exit, and which point this one is too."""
    return shares(point["exit_share"]) + (f"  same as {point['same_as']}" if point["same_as"] else "")


def say_audit(audit: dict[str, Any]) -> None:
    """What the exits and the operating points with names reached on the audit images, if there are any."""
    if audit["images"]:
        say(f"{audit['images']} audit images, which chose nothing: expected minus reached accuracy ± s.e., in points")
        say(", ".join(f"exit {k} {kept(row)}" for k, row in enumerate(audit["exits"], 1)))
        points = audit["operating_points"].items()
        if named := [f"{name} {kept(row)}" for name, row in points if has_own_name(name)]:
            say(", ".join(named))
    else:
        say(f"no audit set: {audit['reason']}")
    if audit["leak"]:
        say(f"warning: {audit['leak']}; the accuracy on them may be too high")


def numbers(numbers: list[float] | tuple[float, ...]) -> str:
    return " / ".join(f"{number:.3f}" for number in numbers)


def warn_of_few_images(calibration: "CalibrationFile") -> None:
    """On stderr, for --json too."""
    if calibration.images >= FEW_IMAGES:
        return
    error = max(point.standard_error for point in calibration.operating_points)
    counted = "1 validation image" if calibration.images == 1 else f"{calibration.images} validation images"
    sys.stderr.write(
        f"only {counted}: the standard error of an expected accuracy is up to {100 * error:.1f} points; "
        "more images, in a val/ folder, would lower it\n"
    )
