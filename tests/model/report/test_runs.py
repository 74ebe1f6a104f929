from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msmlp.model.errors import OptionError
from msmlp.model.report.find import find_runs
from msmlp.model.report.runs import write_report


def colourful(path: Path) -> float:
    """The share of a PNG's pixels that have a colour: lines and marks, not paper and ink."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return float((np.ptp(pixels, axis=2) > 60).mean())


def height(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.height


def test_a_page_and_two_pictures_are_written(runs: Path, tmp_path: Path) -> None:
    page, *pictures = write_report(find_runs([runs]), tmp_path / "out" / "here")
    assert all(f"]({picture.name})" in page.read_text() for picture in pictures)
    assert all(colourful(picture) > 0.001 for picture in pictures)


def test_more_runs_leave_more_colour(runs: Path, tmp_path: Path) -> None:
    _, *one = write_report(find_runs([runs / "half"]), tmp_path / "one")
    _, *all_of_them = write_report(find_runs([runs]), tmp_path / "all")
    assert all(colourful(many) > colourful(few) for few, many in zip(one, all_of_them, strict=True))


def test_runs_on_different_data_have_panels_of_their_own(runs: Path, tmp_path: Path) -> None:
    def heights(out: str) -> list[int]:
        _, *pictures = write_report(find_runs([runs]), tmp_path / out)
        return [height(picture) for picture in pictures]

    together = heights("together")
    manifest = runs / "plain" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("image folder digits", "image folder letters"))
    assert all(new > 1.7 * old for old, new in zip(together, heights("apart"), strict=True))


def test_a_run_without_a_curve_is_drawn_all_the_same(runs: Path, tmp_path: Path) -> None:
    (runs / "plain" / "metrics.jsonl").unlink()
    (runs / "half" / "metrics.jsonl").write_text("")
    assert len(write_report(find_runs([runs]), tmp_path / "out")) == 3


def test_a_folder_that_cannot_be_made_is_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"out: .* cannot be made a folder"):
        write_report(find_runs([runs]), tmp_path / "file")


def test_a_folder_that_cannot_be_written_to_is_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "report.md").mkdir(parents=True)
    with pytest.raises(OptionError, match=r"out: .* cannot be written to"):
        write_report(find_runs([runs]), tmp_path / "out")
