"""One weights folder: how it was made, every exit, every operating point, and what was measured with it."""

from typing import Any

from msmlp.model.config import CascadeConfig
from scripts.results.bench import bench_lines
from scripts.results.sources import Shipped
from scripts.results.text import percent, shares, table

PICTURES = ("curves", "confusion", "reliability")


def section(shipped: Shipped) -> list[str]:
    """The lines of its section."""
    lines = [f"## `{shipped.name}`", "", *_provenance(shipped), "", *_exits(shipped), *_pictures(shipped, PICTURES)]
    lines += ["", *_points(shipped)]
    if shipped.bench is not None:
        lines += ["", *bench_lines(shipped.bench)]
    return lines


def _provenance(shipped: Shipped) -> list[str]:
    training, test = shipped.manifest["training"], shipped.test
    teacher, start = (training.get("teacher") or {}).get("name"), training.get("init")
    tested = "none measured yet" if test is None else str(test["images"])
    lines = [
        f"- data: {training['data']}, {training['images']} images to train on, "
        f"{training['validation']['images']} to validate, {tested} to test; seed {training['seed']}",
        f"- command (commit {training['git_commit']}): `{training['command']}`",
        f"- {training['epochs']} epochs on {training['device']}, "
        + (f"distilled from `{teacher}`" if teacher else "without distillation")
        + (f", started from `{start['name']}` (sha256 {start['sha256'][:12]})" if start else "")
        + (f", median {training['images_per_second']:.0f} images/s" if training["images_per_second"] else "")
        + f"; torch {training['torch']}",
    ]
    if test is not None:
        lines.append(
            f"- measured by `msmlp evaluate --weights {test['weights']} --data {test['data']} --split test --json`"
        )
    if (shipped.folder / "card.md").exists():
        lines.append(f"- [model card](../weights/{shipped.name}/card.md)")
    return lines


def _pictures(shipped: Shipped, names: tuple[str, ...]) -> list[str]:
    there = [name for name in names if (shipped.folder / f"{name}.png").exists()]
    return [line for name in there for line in ("", f"![{name}](../weights/{shipped.name}/{name}.png)")]


def _exits(shipped: Shipped) -> list[str]:
    manifest, test = shipped.manifest, shipped.test
    cascade = CascadeConfig.model_validate(manifest["cascade"])
    head = ["exit", "tokens", "GFLOPs", f"validation accuracy ({manifest['training']['validation']['images']} images)"]
    rows = [
        [str(k + 1), str(cascade.tokens(k)), f"{manifest['gflops_cumulative'][k]:.4f}", percent(result["accuracy"])]
        for k, result in enumerate(manifest["results"])
    ]
    if test is not None:
        head += [f"test accuracy ({test['images']} images)", "ECE on test"]
        for row, exit in zip(rows, test["exits"], strict=True):
            row += [percent(exit["accuracy"]), f"{exit['ece']:.3f}"]
    return table(head, rows)


def _points(shipped: Shipped) -> list[str]:
    calibration, test = shipped.calibration, shipped.test
    temperatures = " / ".join(f"{temperature:.3f}" for temperature in calibration["temperatures"])
    lines = [
        f"Exit policy `{calibration['exit_policy']}`, temperatures {temperatures}. Operating points: thresholds chosen",
        f"jointly on {calibration['images']} validation images and applied to the test images. What is expected of a",
        "point is cross-fitted in five folds: measured on images that had no say in temperatures and thresholds.",
        *_pictures(shipped, ("frontier",)),
        "",
    ]
    head = ["point", "expected accuracy ± s.e.", "expected GFLOPs"]
    if test is None:
        rows = [[*_expected(point), shares(point["exit_share"])] for point in calibration["operating_points"]]
        return [*lines, *table([*head, "share at each exit"], rows)]
    head += ["test accuracy", "test GFLOPs", "share at each exit"]
    pairs = zip(calibration["operating_points"], test["operating_points"], strict=True)
    rows = [
        [*_expected(point), percent(got["accuracy"]), f"{got['mean_gflops']:.4f}", shares(got["exit_share"])]
        for point, got in pairs
    ]
    return [*lines, *table(head, rows)]


def _expected(point: dict[str, Any]) -> list[str]:
    accuracy = f"{percent(point['expected_accuracy'])} ± {100 * point['standard_error']:.2f}"
    return [point["name"], accuracy, f"{point['mean_gflops']:.4f}"]
