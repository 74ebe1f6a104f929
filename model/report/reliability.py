"""Whether a confidence means what it says: accuracy against confidence, an exit a panel."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.evaluate import calibration_error
from msmlp.model.offline import Outputs
from msmlp.model.report.figures import paper, save

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in [low, high): their share of all, mean confidence, accuracy."""

    low: float
    high: float
    share: float
    confidence: float
    accuracy: float


def bins_of(confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """The bins that hold images, for confidences [N] and whether each was right [N]; 1 belongs to the last bin."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        Bin(
            low=b / bins,
            high=(b + 1) / bins,
            share=float((place == b).mean()),
            confidence=float(confidence[place == b].mean()),
            accuracy=float(correct[place == b].mean()),
        )
        for b in np.unique(place).tolist()
    ]


def plot_reliability(outputs: Outputs, correct: NDArray[np.bool_], title: str, path: Path) -> None:
    """Draw bars up to the accuracy of each bin beside the diagonal, and how many images each bin holds below."""
    exits = correct.shape[1]
    figure = paper(4 * exits + 0.4, 4.6)
    upper, lower = figure.subplots(
        2, exits, squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": [3, 1]}
    )
    for k in range(exits):
        found = bins_of(outputs.probabilities[:, k].max(axis=1), correct[:, k])
        _draw(upper[k], lower[k], found)
        upper[k].set_title(f"exit {k + 1}: ECE {calibration_error(outputs, correct, k, BINS):.3f}")
        lower[k].set_xlabel("confidence")
    upper[0].set_ylabel("accuracy")
    lower[0].set_ylabel("share of images")
    figure.suptitle(title)
    save(figure, path)


def _draw(upper: Any, lower: Any, found: list[Bin]) -> None:
    places = [(each.low + each.high) / 2 for each in found]
    widths = [0.92 * (each.high - each.low) for each in found]
    upper.bar(places, [each.accuracy for each in found], widths, color="tab:blue", label="accuracy")
    upper.plot([0, 1], [0, 1], color="black", linewidth=0.8, label="as it should be")
    where = [each.confidence for each in found], [each.accuracy for each in found]
    upper.plot(*where, "o", color="magenta", markersize=3)
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.grid(alpha=0.3)
    lower.bar(places, [each.share for each in found], widths, color="tab:gray")
    lower.grid(alpha=0.3)
