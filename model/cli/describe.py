"""`msmlp export` and `msmlp info`."""

from pathlib import Path
from typing import Annotated

import typer

from model.cli.common import AsJson, WeightsFolder, numbers, print_json, say, shares


def _presets(incomplete: str) -> list[str]:
    from model.config import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


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
        print_json({"weights": str(weights), "graphs": graphs})
        return
    for graph in graphs:
        say(f"{graph['file']}: {graph['bytes'] / 2**20:.2f} MiB, within {graph['difference']:.1e} of torch")
    say(f"{weights} is ready: msmlp serve --weights {weights} --backend onnx")


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
