"""The offline commands: train, evaluate, calibrate, export, info, report. Heavy imports happen inside the commands."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from model.report.command import app as report

if TYPE_CHECKING:
    from model.weights.calibration import CalibrationFile

FEW_IMAGES = 100
"""With fewer validation images than this, an expected accuracy of 90 % has a standard error above 3 points."""

app = typer.Typer(rich_markup_mode=None)
app.add_typer(report)


def _presets(incomplete: str) -> list[str]:
    from model.config import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def _trainable(incomplete: str) -> list[str]:
    from model.training.options import network_presets

    return [name for name in network_presets() if name.startswith(incomplete)]


Data = Annotated[Path, typer.Option(help="Image folder, CIFAR python folder, or its .tar.gz.")]
WeightsFolder = Annotated[Path, typer.Option(help="A weights folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes a GPU when there is one.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="auto is bfloat16 on a GPU, float32 on a CPU.")
]


@app.command()
def train(
    data: Data,
    preset: Annotated[
        str,
        typer.Option(
            help="Which cascade (msmlp info --preset NAME describes it), or a teacher: teacher-s, ...",
            autocompletion=_trainable,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The weights folder to make.")],
    recipe: Annotated[
        Literal["paper", "best", "distill", "teacher", "quick"] | None,
        typer.Option(help="How to train; best, or teacher for a teacher. quick suits a CPU, distill --teacher."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's number.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's number.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Weights, order, augmentation, validation images.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    teacher: Annotated[
        str, typer.Option(metavar="DIR|none", help="What every exit learns from: a teacher, or any weights folder.")
    ] = "none",
    init: Annotated[
        Path | None, typer.Option(help="Start from these weights of the same cascade, not from random ones.")
    ] = None,
    compiles: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="torch.compile, which needs a C++ compiler on a CPU; only a GPU by default."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    limit_per_class: Annotated[int | None, typer.Option(min=1, help="Train on so many of a class.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe or cascade field.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a cascade offline and leave a weights folder.

    \b
    Examples:
      msmlp train --data my-photos --preset tiny --recipe quick --out weights/mine
      msmlp train --data photos --preset tiny --out weights/b --teacher weights/a
      msmlp train --data cifar-10-python.tar.gz --preset xs --out weights/x \\
          --epochs 50 --set lr=0.002 --set stages.0.width=96
      msmlp train --data cifar-10-python.tar.gz --preset teacher-s \\
          --recipe teacher --out runs/teacher
      msmlp train --data cifar-10-python.tar.gz --preset xs --recipe distill \\
          --teacher runs/teacher --out weights/y
    """
    from model.config import parse_assignments
    from model.training.options import TrainOptions
    from model.training.trainer import train as run

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
            dtype=dtype,
            teacher=None if teacher == "none" else Path(teacher),
            init=init,
            compile=compiles,
            resume=resume,
            limit_per_class=limit_per_class,
            changes=parse_assignments(changes or []),
        )
    )
    _say_trained(folder, as_json)


def _say_trained(folder: Path, as_json: bool) -> None:
    from model.training.teacher_folder import read_teacher
    from model.weights import load_calibration, load_weights

    found = read_teacher(folder)
    if found is None:
        weights = load_weights(folder)
        _warn_of_few_images(load_calibration(weights).file)
    results = weights.manifest.results if found is None else found[0].results
    if as_json:
        _print_json({"weights": str(folder), "results": results})
        return
    for row in results:
        _say(f"exit {row['exit']}: {100 * row['accuracy']:.2f} % of {row['images']} validation images")
    next_step = f"msmlp serve --weights {folder}" if found is None else f"msmlp train --teacher {folder} ..."
    _say(f"{folder} is ready: {next_step}")


@app.command()
def evaluate(
    weights: WeightsFolder,
    data: Data,
    split: Annotated[Literal["val", "test"], typer.Option(help="Which images.")] = "val",
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Accuracy and cost of every exit and every operating point.

    \b
    Examples:
      msmlp evaluate --weights weights/mine --data my-photos --split test
      msmlp evaluate --weights weights/mine --data my-photos --json > result.json
    """
    from model.evaluate import evaluate as run

    result = run(weights, data, split, device, dtype)
    if as_json:
        _print_json(result)
        return
    _say(
        f"{result['images']} {split} images of {data}, on {result['device']} in {result['dtype']}, "
        f"exit policy {result['exit_policy']}"
    )
    _say("exit      accuracy  GFLOPs   ECE")
    for row in result["exits"]:
        _say(f"{row['exit']:<9} {100 * row['accuracy']:6.2f} %  {row['gflops']:<8.3g} {row['ece']:.3f}")
    _say("point     accuracy  GFLOPs   share of images at each exit")
    for row in result["operating_points"]:
        _say(
            f"{row['name']:<9} {100 * row['accuracy']:6.2f} %  {row['mean_gflops']:<8.3g} {_shares(row['exit_share'])}"
        )


@app.command()
def calibrate(
    weights: WeightsFolder,
    data: Data,
    exit_policy: Annotated[
        Literal["max-probability", "margin", "entropy", "ensemble", "gate"],
        typer.Option(help="What is compared with the thresholds."),
    ] = "max-probability",
    cost: Annotated[
        Literal["gflops", "ms"], typer.Option(help="What the frontier spends: GFLOPs, or milliseconds measured here.")
    ] = "gflops",
    risk: Annotated[
        float | None, typer.Option(help="Adds the point risk-R: at most a share R of images lost to early exit.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="The probability that --risk holds; 0.95 if not given.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Fit the temperatures, solve the frontier on the validation images and write the calibration.

    \b
    Examples:
      msmlp calibrate --weights weights/mine --data my-photos
      msmlp calibrate --weights weights/mine --data my-photos \\
          --exit-policy margin --cost ms
      msmlp calibrate --weights weights/mine --data my-photos \\
          --risk 0.01 --confidence 0.95
    """
    from model.calibration.calibrate import calibrate as run

    made = run(weights, data, device, dtype=dtype, exit_policy=exit_policy, cost=cost, risk=risk, confidence=confidence)
    _warn_of_few_images(made)
    _warn_of_no_early_exit(made)
    if as_json:
        _print_json(made.model_dump(mode="json", include={"exit_policy", "temperatures", "operating_points"}))
        return
    _say(f"{made.images} validation images of {data}, on {made.device} in {made.dtype}")
    _say(f"exit policy {made.exit_policy}, temperatures {_numbers(made.temperatures)}")
    _say("point     accuracy ± s.e.   GFLOPs   ms      share of images at each exit")
    for p in made.operating_points:
        accuracy = f"{100 * p.expected_accuracy:6.2f} ± {100 * p.standard_error:5.2f} %"
        _say(f"{p.name:<9} {accuracy}  {p.mean_gflops:<8.3g} {p.mean_ms or 0:.4f}  {_shares(p.exit_share)}")
    for p in made.operating_points:
        if p.risk is not None and p.confidence is not None:
            _say(
                f"{p.name}: with probability {100 * p.confidence:g} %, at most {100 * p.risk:g} % of images are lost "
                "(wrong, and right at the last exit)"
            )


@app.command()
def export(weights: WeightsFolder, as_json: AsJson = False) -> None:
    """Write one ONNX graph a stage into a calibrated weights folder, compared with torch first.

    The graphs hold the temperatures and the exit policy: export again after each msmlp calibrate.

    \b
    Examples:
      msmlp export --weights weights/mine
      msmlp export --weights weights/mine --json
    """
    from model.export import export as run

    graphs = run(weights)
    if as_json:
        _print_json({"weights": str(weights), "graphs": graphs})
        return
    for graph in graphs:
        _say(f"{graph['file']}: {graph['bytes'] / 2**20:.2f} MiB, within {graph['difference']:.1e} of torch")
    _say(f"{weights} is ready: msmlp serve --weights {weights} --backend onnx")


@app.command()
def info(
    weights: Annotated[Path | None, typer.Option(help="A weights folder.")] = None,
    preset: Annotated[str | None, typer.Option(help="A preset's name.", autocompletion=_presets)] = None,
    as_json: AsJson = False,
) -> None:
    """Architecture, exits, GFLOPs, frontier and provenance of a weights folder or a preset.

    \b
    Examples:
      msmlp info --preset paper-s
      msmlp info --weights weights/cifar10-s --json
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
            f"{exit['gflops']:.3g} GFLOPs so far ({exit['gflops_unfolded']:.3g} unfolded)"
        )
    if "temperatures" in result:
        _say(f"exit policy {result['exit_policy']}, temperatures {_numbers(result['temperatures'])}")
    for point in result.get("operating_points", []):
        accuracy = f"{100 * point['expected_accuracy']:6.2f} %"
        _say(f"{point['name']:<9} {accuracy}  {point['mean_gflops']:<8.3g} GFLOPs  {_shares(point['exit_share'])}")
    if "command" in result.get("training", {}):
        _say(f"trained by: {result['training']['command']}")


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def _warn_of_few_images(calibration: "CalibrationFile") -> None:
    """Before the results, on stderr, so that it stands with --json too."""
    if calibration.images >= FEW_IMAGES:
        return
    error = max(point.standard_error for point in calibration.operating_points)
    counted = "1 validation image" if calibration.images == 1 else f"{calibration.images} validation images"
    sys.stderr.write(
        f"only {counted}: the standard error of an expected accuracy is up to {100 * error:.1f} points; "
        "more of them, in a val/ folder, would tell more\n"
    )


def _warn_of_no_early_exit(calibration: "CalibrationFile") -> None:
    """Where --risk asked for more than the images can certify; on stderr as above."""
    from model.calibration.risk import RiskLimit

    for point in calibration.operating_points:
        if point.risk is not None and point.confidence is not None and min(point.thresholds, default=1.0) >= 1:
            fewest = RiskLimit(point.risk, point.confidence).fewest_images
            sys.stderr.write(
                f"{point.name} never exits early: no earlier exit could be certified on half of the "
                f"{calibration.images} validation images (that half needs at least {fewest}, if none of them is lost)\n"
            )


def _numbers(numbers: list[float] | tuple[float, ...]) -> str:
    return " / ".join(f"{number:.3f}" for number in numbers)


def _shares(shares: list[float] | tuple[float, ...]) -> str:
    return " / ".join(f"{100 * share:.0f} %" for share in shares)
