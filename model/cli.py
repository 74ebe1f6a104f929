"""The offline commands: train, evaluate, calibrate, info. Heavy imports happen inside the commands."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


Data = Annotated[Path, typer.Option(help="Image folder, CIFAR python folder, or its .tar.gz.")]
WeightsFolder = Annotated[Path, typer.Option(help="A weights folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.command()
def train(
    data: Data,
    preset: Annotated[str, typer.Option(help="Which cascade; `msmlp info --preset NAME` describes it.")],
    out: Annotated[Path, typer.Option(help="The weights folder to make.")],
    recipe: Annotated[str, typer.Option(help="paper, best or quick.")] = "best",
    epochs: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's number.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's number.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Weights, order, augmentation, validation images.")] = 0,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    limit_per_class: Annotated[int | None, typer.Option(min=1, help="Train on so many of a class.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe or cascade field.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a cascade offline and leave a weights folder.

    Example: msmlp train --data my-photos --preset tiny --recipe quick --out weights/mine

    Example: msmlp train --data cifar-10-python.tar.gz --preset xs --out weights/x --set lr=0.002
    """
    from model.config import parse_assignments
    from model.training.trainer import TrainOptions
    from model.training.trainer import train as run
    from model.weights import load_manifest

    folder = run(
        TrainOptions(
            data=data,
            preset=preset,
            out=out,
            recipe=recipe,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            device=device,
            resume=resume,
            limit_per_class=limit_per_class,
            changes=parse_assignments(changes or []),
        )
    )
    manifest = load_manifest(folder)
    if as_json:
        _print_json({"weights": str(folder), "results": manifest.results})
        return
    for row in manifest.results:
        _say(f"exit {row['exit']}: {100 * row['accuracy']:.2f} % of {row['images']} validation images")
    _say(f"{folder} is ready: msmlp serve --weights {folder}")


@app.command()
def evaluate(
    weights: WeightsFolder,
    data: Data,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Accuracy and cost of every exit and every operating point.

    Example: msmlp evaluate --weights weights/mine --data my-photos --split test --json
    """
    from model.evaluate import evaluate as run

    result = run(weights, data, split, device)
    if as_json:
        _print_json(result)
        return
    _say(f"{result['images']} {split} images of {data}, on {result['device']}")
    _say("exit      accuracy  GFLOPs   ECE")
    for row in result["exits"]:
        _say(f"{row['exit']:<9} {100 * row['accuracy']:6.2f} %  {row['gflops']:.4f}  {row['ece']:.3f}")
    _say("point     accuracy  GFLOPs   share of images at each exit")
    for row in result["operating_points"]:
        _say(f"{row['name']:<9} {100 * row['accuracy']:6.2f} %  {row['mean_gflops']:.4f}  {_shares(row['exit_share'])}")


@app.command()
def calibrate(weights: WeightsFolder, data: Data, device: Device = "auto", as_json: AsJson = False) -> None:
    """Solve the frontier on the validation images and write the calibration.

    Example: msmlp calibrate --weights weights/mine --data my-photos
    """
    from model.calibration.calibrate import calibrate as run

    points = run(weights, data, device)
    if as_json:
        _print_json({"operating_points": [point.model_dump(mode="json") for point in points]})
        return
    for p in points:
        accuracy = f"{100 * p.expected_accuracy:6.2f} ± {100 * p.standard_error:.2f} %"
        _say(f"{p.name:<9} {accuracy}  {p.mean_gflops:.4f} GFLOPs  {_shares(p.exit_share)}")


@app.command()
def info(
    weights: Annotated[Path | None, typer.Option(help="A weights folder.")] = None,
    preset: Annotated[str | None, typer.Option(help="A preset's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Architecture, exits, GFLOPs, frontier and provenance of a weights folder or a preset.

    Example: msmlp info --preset paper-s

    Example: msmlp info --weights weights/cifar10-xs --json
    """
    from model.errors import OptionError
    from model.info import preset_info, weights_info

    if (weights is None) == (preset is None):
        raise OptionError("info", "give one of --weights and --preset")
    result = weights_info(weights) if weights is not None else preset_info(str(preset))
    if as_json:
        _print_json(result)
        return
    cascade = result["cascade"]
    _say(f"{result['name']}: {cascade['classes']} classes, {cascade['image_size']} px, reuse {cascade['reuse']}")
    for stage, exit in zip(cascade["stages"], result["exits"], strict=True):
        tokens = (cascade["image_size"] // stage["patch"]) ** 2
        _say(
            f"exit {exit['exit']}: {tokens} tokens, width {stage['width']}, {stage['depth']} blocks; "
            f"{exit['gflops']:.4f} GFLOPs so far ({exit['gflops_unfolded']:.4f} unfolded)"
        )
    for point in result.get("operating_points", []):
        accuracy = f"{100 * point['expected_accuracy']:6.2f} %"
        _say(f"{point['name']:<9} {accuracy}  {point['mean_gflops']:.4f} GFLOPs  {_shares(point['exit_share'])}")
    if "command" in result.get("training", {}):
        _say(f"trained by: {result['training']['command']}")


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _shares(shares: list[float] | tuple[float, ...]) -> str:
    return " / ".join(f"{100 * share:.0f} %" for share in shares)
