"""The frontier of a weights folder as a picture."""

from pathlib import Path

from msmlp.model.calibration.frontier import NAMED
from msmlp.model.weights import Calibration, load_calibration, load_weights


def plot_frontier(folder: Path, path: Path) -> None:
    """Draw expected accuracy against mean GFLOPs to a PNG file.

    Points with ± one standard error and the names of three; crosses where every image runs to one exit; thin lines for
    what each solver reached on the images it saw.

    Raises:
        WeightsError: a damaged or uncalibrated weights folder.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    weights = load_weights(folder)
    calibration = load_calibration(weights)
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for solver, reached in calibration.file.solvers.items():
        axes.plot(*zip(*reached, strict=True), linewidth=0.8, label=f"{solver}, on the images it saw")
    points = calibration.points
    axes.errorbar(
        [p.mean_gflops for p in points],
        [p.expected_accuracy for p in points],
        [p.standard_error for p in points],
        fmt="o",
        color="black",
        markersize=3,
        linewidth=0.8,
        label="operating points, held out, ± 1 s.e.",
    )
    for point in points:
        if point.name in NAMED:
            place = (point.mean_gflops, point.expected_accuracy)
            axes.annotate(point.name, place, xytext=(6, -14), textcoords="offset points")
    exits = _single_exits(calibration)
    axes.plot(*zip(*exits, strict=True), "x", color="magenta", label="every image to one exit")
    axes.set(xlabel="mean GFLOPs an image", ylabel="accuracy", title=f"{weights.manifest.name}: {_images(calibration)}")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def _single_exits(calibration: Calibration) -> list[tuple[float, float]]:
    exits = len(calibration.file.temperatures)
    never = (1.0,) * (exits - 1)
    runs = [calibration.expect(never, k, k) for k in range(1, exits + 1)]
    return [(run.mean_gflops, run.accuracy) for run in runs]


def _images(calibration: Calibration) -> str:
    return f"{calibration.file.images} validation images, exit policy {calibration.file.exit_policy}"
