"""`msmlp evaluate` and `msmlp calibrate`."""

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from msmlp.model.cli.common import (
    AsJson,
    Data,
    Device,
    Dtype,
    WeightsFolder,
    numbers,
    print_json,
    say,
    shares,
    warn_of_few_images,
)

if TYPE_CHECKING:
    from msmlp.model.weights.calibration import CalibrationFile


def evaluate(
    weights: WeightsFolder,
    data: Data,
    split: Annotated[Literal["val", "test"], typer.Option(help="Which images.")] = "val",
    device: Device = "auto",
    backend: Annotated[Literal["torch", "onnx"], typer.Option(help="What runs the stages.")] = "torch",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        typer.Option(help="As in msmlp serve; float16 and int8 are for onnx."),
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Accuracy and cost of every exit and every operating point.

    \b
    Examples:
      msmlp evaluate --weights weights/mine --data my-photos --split test
      msmlp evaluate --weights weights/mine --data my-photos --json > result.json
      msmlp evaluate --weights weights/mine --data my-photos \\
          --backend onnx --dtype int8
    """
    from msmlp.model.evaluate import evaluate as run

    result = run(weights, data, split, device, dtype, backend)
    if as_json:
        print_json(result)
        return
    say(
        f"{result['images']} {split} images of {data}, {result['backend']} on {result['device']} in {result['dtype']}, "
        f"exit policy {result['exit_policy']}"
    )
    say("exit      accuracy  GFLOPs   ECE")
    for row in result["exits"]:
        say(f"{row['exit']:<9} {100 * row['accuracy']:6.2f} %  {row['gflops']:<8.3g} {row['ece']:.3f}")
    say("point     accuracy  GFLOPs   share of images at each exit")
    for row in result["operating_points"]:
        say(f"{row['name']:<9} {100 * row['accuracy']:6.2f} %  {row['mean_gflops']:<8.3g} {shares(row['exit_share'])}")


def calibrate(
    weights: WeightsFolder,
    data: Data,
    exit_policy: Annotated[
        Literal["max-probability", "margin", "entropy"],
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
    from msmlp.model.calibration.calibrate import calibrate as run

    made = run(weights, data, device, dtype=dtype, exit_policy=exit_policy, cost=cost, risk=risk, confidence=confidence)
    warn_of_few_images(made)
    _warn_of_no_early_exit(made)
    if as_json:
        print_json(made.model_dump(mode="json", include={"exit_policy", "temperatures", "operating_points"}))
        return
    say(f"{made.images} validation images of {data}, on {made.device} in {made.dtype}")
    say(f"exit policy {made.exit_policy}, temperatures {numbers(made.temperatures)}")
    say("point     accuracy ± s.e.   GFLOPs   ms      share of images at each exit")
    for p in made.operating_points:
        accuracy = f"{100 * p.expected_accuracy:6.2f} ± {100 * p.standard_error:5.2f} %"
        say(f"{p.name:<9} {accuracy}  {p.mean_gflops:<8.3g} {p.mean_ms or 0:.4f}  {shares(p.exit_share)}")
    for p in made.operating_points:
        if p.risk is not None and p.confidence is not None:
            say(
                f"{p.name}: with probability {100 * p.confidence:g} %, at most {100 * p.risk:g} % of images are lost "
                "(wrong, and right at the last exit)"
            )


def _warn_of_no_early_exit(calibration: "CalibrationFile") -> None:
    """Where --risk asked for more than the images can certify; on stderr as above."""
    from msmlp.model.calibration.risk import RiskLimit

    for point in calibration.operating_points:
        if point.risk is not None and point.confidence is not None and min(point.thresholds, default=1.0) >= 1:
            fewest = RiskLimit(point.risk, point.confidence).fewest_images
            sys.stderr.write(
                f"{point.name} never exits early: no earlier exit could be certified on half of the "
                f"{calibration.images} validation images (that half needs at least {fewest}, if none of them is lost)\n"
            )
