import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msmlp.model.errors import WeightsError
from msmlp.model.report.plots import plot_frontier


def test_a_frontier_is_drawn(tiny_weights: Path, tmp_path: Path) -> None:
    plot_frontier(tiny_weights, tmp_path / "frontier.png")
    with Image.open(tmp_path / "frontier.png") as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    # White paper, black points, and the magenta crosses of the single exits.
    magenta = (pixels[..., [0, 2]] > 200).all(axis=2) & (pixels[..., 1] < 80)
    assert (pixels == 255).all(axis=2).mean() > 0.5
    assert (pixels < 30).all(axis=2).any()
    assert magenta.sum() > 20


def test_a_folder_without_a_calibration_is_refused(tiny_weights: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))
    (folder / "calibration.json").unlink()
    with pytest.raises(WeightsError, match="not calibrated"):
        plot_frontier(folder, tmp_path / "frontier.png")
    assert not (tmp_path / "frontier.png").exists()
