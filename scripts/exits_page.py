"""Writes the tables of docs/exits-and-budgets.md from the shipped calibration: `make docs`."""

from collections.abc import Iterable
from pathlib import Path

from msmlp.model.weights import Calibration, OperatingPoint, Weights, load_calibration, load_weights
from msmlp.service.operating_points import OperatingPoints
from msmlp.service.options import parse_options
from msmlp.service.settings import DEFAULT_WEIGHTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "exits-and-budgets.md"
REQUESTS: tuple[dict[str, str], ...] = (
    {},
    {"policy": "fast"},
    {"budget_gflops": "0.004"},
    {"budget_gflops": "0.02"},
    {"min_accuracy": "0.75"},
    {"min_accuracy": "0.8"},
    {"max_gflops": "0.011"},
    {"policy": "accurate", "max_exit": "1"},
    {"policy": "accurate", "min_exit": "2"},
    {"thresholds": "0.9,0.8"},
    {"thresholds": "1,1"},
)


def filled(text: str) -> str:
    """The page with its generated parts as the shipped weights have them now."""
    weights = load_weights(DEFAULT_WEIGHTS)
    calibration = load_calibration(weights)
    parts = {
        "exits": _exits(weights, calibration),
        "points": _points(calibration),
        "requests": _requests(weights, calibration),
    }
    for name, lines in parts.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not end:
            raise ValueError(f"{PAGE} has no place for {name}")
        text = before + start + "\n".join(lines) + "\n" + end + after
    return text


def _exits(weights: Weights, calibration: Calibration) -> Iterable[str]:
    costs = weights.manifest.gflops_cumulative
    yield from ("| every image to | GFLOPs an image | right |", "|---|---|---|")
    for exit, cost in enumerate(costs, 1):
        # As served; the manifest has what training saw, which may have computed in another dtype.
        right = calibration.expect((1.0,) * (len(costs) - 1), max_exit=exit).accuracy
        yield f"| exit {exit} | {cost:.4f} | {right:.2%} |"


def _points(calibration: Calibration) -> Iterable[str]:
    yield "| operating point | thresholds | expected accuracy ± s.e. | mean GFLOPs | leave at each exit |"
    yield "|---|---|---|---|---|"
    for point in calibration.points:
        accuracy = f"{point.expected_accuracy:.2%} ± {100 * point.standard_error:.2f}"
        yield f"| `{point.name}` | {_joined(point)} | {accuracy} | {point.mean_gflops:.4f} | {_shares(point)} |"


def _joined(point: OperatingPoint) -> str:
    return ", ".join(f"{threshold:.3f}" for threshold in point.thresholds)


def _shares(point: OperatingPoint) -> str:
    return " / ".join(f"{share:.0%}" for share in point.exit_share)


def _requests(weights: Weights, calibration: Calibration) -> Iterable[str]:
    points = OperatingPoints(calibration, weights.manifest.gflops_cumulative, "balanced")
    yield from ("| request | takes | expected accuracy | expected GFLOPs |", "|---|---|---|---|")
    for options in REQUESTS:
        point = points.resolve(parse_options(options))
        asked = " ".join(f"`{name}={value}`" for name, value in options.items()) or "(nothing)"
        taken = f"`{point.name}`" if point.name else "its own thresholds"
        yield f"| {asked} | {taken} | {point.expected_accuracy:.2%} | {point.expected_gflops:.4f} |"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
