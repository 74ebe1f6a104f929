"""`msmlp export` and `msmlp info`."""

from pathlib import Path
from typing import Annotated

import typer

from msmlp.model.cli.common import AsJson, GraphDtype, WeightsFolder, numbers, print_json, say, shares


def _presets(incomplete: str) -> list[str]:
    from msmlp.model.nn.config import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def export(
    weights: WeightsFolder,
    dtype: Annotated[GraphDtype, typer.Option(help="float16 is for GPUs, int8 for CPUs.")] = "float32",
    data: Annotated[
        Path | None, typer.Option(help="For int8: what the weights were trained on; its validation images set ranges.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one ONNX graph per stage into a calibrated weights folder, compared with torch first.

    msmlp train and msmlp calibrate leave float32 graphs that match; this adds other formats. The graphs contain the
    temperatures and the exit policy: msmlp calibrate exports those in the folder again when it changes either.

    \b
    Examples:
      msmlp export --weights weights/mine
      msmlp export --weights weights/mine --dtype float16
      msmlp export --weights weights/mine --dtype int8 --data my-photos
    """
    from msmlp.model.export import export as run

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
        shown = ", ".join(f"{100 * before:.2f} → {100 * after:.2f} %" for before, after in exits)
        say(f"accuracy of every exit on {found['images']} validation images, float32 → int8: {shown}")
    option = "" if dtype == "float32" else f" --dtype {dtype}"
    say(f"{weights} is ready: msmlp serve --weights {weights} --backend onnx{option}")


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
    cascade = result["cascade"]
    say(f"{result['name']}: {cascade['classes']} classes, {cascade['image_size']} px, reuse {cascade['reuse']}")
    for stage, exit in zip(cascade["stages"], result["exits"], strict=True):
        tokens = (cascade["image_size"] // stage["patch"]) ** 2
        say(
            f"exit {exit['exit']}: {tokens} tokens, width {stage['width']}, {stage['depth']} blocks; "
            f"{exit['gflops']:.3g} GFLOPs so far ({exit['gflops_unfolded']:.3g} unfolded)"
        )
    if "temperatures" in result:
        say(f"exit policy {result['exit_policy']}, temperatures {numbers(result['temperatures'])}")
    for point in result.get("operating_points", []):
        accuracy = f"{100 * point['expected_accuracy']:6.2f} %"
        say(f"{point['name']:<9} {accuracy}  {point['mean_gflops']:<8.3g} GFLOPs  {shares(point['exit_share'])}")
    if "command" in result.get("training", {}):
        say(f"trained by: {result['training']['command']}")
