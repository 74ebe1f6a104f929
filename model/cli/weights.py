"""The commands on a weights folder: `msmlp evaluate`, `calibrate`, `export` and `info`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msmlp.model.cli.common import (
    AsJson,
    Data,
    Device,
    Dtype,
    WeightsFolder,
    left,
    numbers,
    print_json,
    say,
    say_audit,
    say_points,
    warn_of_few_images,
)
from msmlp.model.text import kept, percent

if TYPE_CHECKING:
    from msmlp.model.weights.calibration import CalibrationFile, OperatingPoint


def evaluate(
    weights: WeightsFolder,
    data: Data,
    split: Annotated[Literal["val", "audit", "test"], typer.Option(help="Which images.")] = "val",
    device: Device = "auto",
    backend: Annotated[
        Literal["torch", "onnx"] | None,
        typer.Option(help="What runs the stages.", show_default="torch; onnx for an imported cascade"),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "int8"],
        typer.Option(help="As for msmlp serve; float16 and int8 need --backend onnx."),
    ] = "auto",
    policy: Annotated[
        str | None, typer.Option(help="The operating point of the lines per class.", show_default="balanced")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy and cost of every exit and every operating point, and how far the expected accuracies held.

    The balanced accuracy is the mean over the classes, however many images each has; then comes one line per class.

    \b
    Examples:
      msmlp evaluate --weights weights/mine --data my-photos --split test
      msmlp evaluate --weights weights/mine --data my-photos --json > result.json
      msmlp evaluate --weights weights/mine --data my-photos \\
          --backend onnx --dtype int8
    """
    from msmlp.model.evaluate import evaluate as run

    result = run(weights, data, split, device, dtype, backend, policy)
    if as_json:
        print_json(result)
        return
    say(
        f"{result['images']} {split} images of {data}, {result['backend']} on {result['device']} in {result['dtype']}, "
        f"exit policy {result['exit_policy']}"
    )
    beside = "" if split == "val" else "expected - reached ± s.e.  "
    say(f"exit      accuracy  balanced  GFLOPs   {beside}ECE")
    for row in result["exits"]:
        say(f"{row['exit']:<9} {_reached(row)}  {row['gflops']:<8.3g} {_kept(row, beside)}{row['ece']:.3f}")
    say(f"point     accuracy  balanced  GFLOPs   {beside}share of images at each exit")
    for row in result["operating_points"]:
        say(f"{row['name']:<9} {_reached(row)}  {row['mean_gflops']:<8.3g} {_kept(row, beside)}{left(row)}")
    if not beside:
        say("these images chose the thresholds, so the points look better than they are; msmlp info has what to expect")
    _say_classes(result)
    say_audit(result["audit"])


def _reached(row: dict[str, Any]) -> str:
    return f"{percent(row['accuracy']):>8}  {percent(row['balanced_accuracy']):>8}"


def _say_classes(result: dict[str, Any]) -> None:
    width = max(len(row["class"]) for row in result["classes"])
    say(f"{'class':<{max(width, 9)}} accuracy  images  (at {result['policy']})")
    for row in result["classes"]:
        say(f"{row['class']:<{max(width, 9)}} {percent(row['accuracy']):>8}  {row['images']}")
    if absent := result["classes_without_images"]:
        say(f"no images of {', '.join(absent)}; the expected accuracies assume all classes")


def _kept(row: dict[str, Any], column: str) -> str:
    return f"{kept(row['promise']):<{len(column)}}" if row["promise"] else ""


def _exit_policies(incomplete: str) -> list[str]:
    from msmlp.model.exits.policies import EXIT_POLICIES

    return [name for name in EXIT_POLICIES if name.startswith(incomplete)]


def _checked_exit_policy(name: str) -> str:
    from msmlp.model.exits.policies import exit_policy

    exit_policy(name)
    return name


# Not a Literal: the check knows which policies were removed.
ExitPolicy = Annotated[
    str,
    typer.Option(
        help="The score that is compared with the thresholds.",
        metavar="[max-probability|margin|entropy]",
        autocompletion=_exit_policies,
        callback=_checked_exit_policy,
    ),
]


def calibrate(
    weights: WeightsFolder,
    data: Data,
    exit_policy: ExitPolicy = "max-probability",
    cost: Annotated[
        Literal["gflops", "ms"], typer.Option(help="The cost to save: GFLOPs, or milliseconds measured here.")
    ] = "gflops",
    risk: Annotated[
        float | None,
        typer.Option(help="Add the operating point risk-R, which loses at most a share R of images to early exits."),
    ] = None,
    confidence: Annotated[float | None, typer.Option(help="The probability that --risk holds (0.95).")] = None,
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
    from msmlp.model.weights.info import weights_info

    made = run(weights, data, device, dtype=dtype, exit_policy=exit_policy, cost=cost, risk=risk, confidence=confidence)
    warn_of_few_images(made)
    _warn_of_no_early_exit(made)
    if as_json:
        print_json(made.model_dump(mode="json", include={"exit_policy", "temperatures", "operating_points", "audit"}))
        return
    say(f"{made.images} validation images of {data}, on {made.device} in {made.dtype}")
    say(f"exit policy {made.exit_policy}, temperatures {numbers(made.temperatures)}")
    say_points(point.model_dump() for point in made.operating_points)
    for p in made.operating_points:
        if p.risk is not None and p.confidence is not None:
            lost = f"with probability {100 * p.confidence:g} %, at most {100 * p.risk:g} % of images are lost"
            none = "no early exit certified; every image runs to the last exit"
            say(f"{p.name}: {none if _never_early(p) else f'{lost} (wrong, and right at the last exit)'}")
    say_audit(weights_info(weights)["audit"])


def _never_early(point: "OperatingPoint") -> bool:
    return min(point.thresholds, default=1.0) >= 1


def _warn_of_no_early_exit(calibration: "CalibrationFile") -> None:
    from msmlp.model.calibration.risk import RiskLimit

    for point in calibration.operating_points:
        if point.risk is not None and point.confidence is not None and _never_early(point):
            fewest = RiskLimit(point.risk, point.confidence).fewest_images
            sys.stderr.write(
                f"{point.name} never exits early: no earlier exit could be certified on half of the "
                f"{calibration.images} validation images (at least {fewest} are needed, even if none is lost)\n"
            )


def export(
    weights: WeightsFolder,
    dtype: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="float16 is for GPUs, int8 for CPUs.")
    ] = "float32",
    data: Annotated[
        Path | None, typer.Option(help="For int8: the training data; its validation images set the ranges.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one ONNX graph per stage into a calibrated weights folder, after comparing them with torch.

    msmlp train and msmlp calibrate leave matching float32 graphs; this adds other formats. Graphs contain the
    temperatures and the exit policy, so msmlp calibrate renews those in the folder when it changes either.

    \b
    Examples:
      msmlp export --weights weights/mine
      msmlp export --weights weights/mine --dtype float16
      msmlp export --weights weights/mine --dtype int8 --data my-photos
    """
    from msmlp.model.export.folder import export as run

    made = run(weights, dtype, data)
    if as_json:
        print_json({"weights": str(weights), **made})
        return
    for graph in made["graphs"]:
        near = f", within {graph['difference']:.1e} of torch" if "difference" in graph else ""
        say(f"{graph['file']}: {graph['bytes'] / 2**20:.2f} MiB{near}")
    if "validation" in made:
        found = made["validation"]
        exits = zip(found["float32"], found["int8"], strict=True)
        shown = ", ".join(f"{100 * before:.2f} → {percent(after)}" for before, after in exits)
        say(f"accuracy of every exit on {found['images']} validation images, float32 → int8: {shown}")
    option = "" if dtype == "float32" else f" --dtype {dtype}"
    say(f"{weights} is ready: msmlp serve --weights {weights} --backend onnx{option}")


def _say_stages(result: dict[str, Any]) -> None:
    cascade = result["cascade"]
    if cascade.get("kind") == "imported":
        say(f"{result['name']}: {cascade['classes']} classes, imported")
        for stage, exit in zip(cascade["stages"], result["exits"], strict=True):
            picture, upstream = stage["picture"], stage["upstream"]
            reads = [f"pictures of {picture['preprocess']['size']} px ({picture['dtype']})"] if picture else []
            reads += [f"upstream features {upstream['shape']}"] if upstream else []
            say(f"exit {exit['exit']}: {' and '.join(reads)}; {exit['gflops']:.3g} GFLOPs so far")
        return
    say(f"{result['name']}: {cascade['classes']} classes, {cascade['image_size']} px, reuse {cascade['reuse']}")
    for stage, exit in zip(cascade["stages"], result["exits"], strict=True):
        tokens = (cascade["image_size"] // stage["patch"]) ** 2
        say(
            f"exit {exit['exit']}: {tokens} tokens, width {stage['width']}, {stage['depth']} blocks; "
            f"{exit['gflops']:.3g} GFLOPs so far ({exit['gflops_unfolded']:.3g} unfolded)"
        )


def _presets(incomplete: str) -> list[str]:
    from msmlp.model.nn.config import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


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
    from msmlp.model.errors import OptionError
    from msmlp.model.weights.info import preset_info, weights_info

    if (weights is None) == (preset is None):
        raise OptionError("info", "give one of --weights and --preset")
    result = weights_info(weights) if weights is not None else preset_info(str(preset))
    if as_json:
        print_json(result)
        return
    _say_stages(result)
    if "temperatures" in result:
        say(f"exit policy {result['exit_policy']}, temperatures {numbers(result['temperatures'])}")
        say_points(result["operating_points"])
        if result["cost"] == "ms":
            say("thresholds were chosen by ms, measured where they were calibrated; answers report GFLOPs")
    if "audit" in result:
        say_audit(result["audit"])
    if "command" in result.get("training", {}):
        say(f"trained by: {result['training']['command']}")
