import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from msmlp.model.training.run_log import MetricsLogger, plot_curves, read_metrics


def row(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 1 / epoch, "val_accuracy": [0.5, 0.6], "images_per_second": 100.0}


def logger(folder: Path, done: int) -> MetricsLogger:
    return MetricsLogger(folder, images=10, epochs=3, done=done)


def test_one_json_line_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = logger(tmp_path, 0)
    for epoch in (1, 2):
        ours.log_epoch(row(epoch))
    ours.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row(1), row(2)] == read_metrics(tmp_path / "metrics.jsonl")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epoch 2: loss 0.500, val accuracy 50.0 / 60.0 %, 100 images/s" in shown.err


def test_progress_shows_loss_images_a_second_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = logger(tmp_path, 1)
    ours.tick(5, 1.2345)
    ours.bar.refresh()
    ours.close()
    shown = capsys.readouterr().err
    assert "15/30" in shown
    assert "loss=1.234" in shown or "loss=1.235" in shown
    assert "img/s" in shown


def test_rows_after_the_checkpoint_are_dropped_on_resuming(tmp_path: Path) -> None:
    first = logger(tmp_path, 0)
    for epoch in (1, 2, 3):
        first.log_epoch(row(epoch))
    first.close()
    second = logger(tmp_path, 2)
    second.log_epoch({**row(3), "loss": 9.0})
    second.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [row(1), row(2), {**row(3), "loss": 9.0}] == second.rows


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(row(1)) + "\n" + json.dumps(row(2))[:20])
    assert read_metrics(path) == [row(1)]
    ours = logger(tmp_path, 1)
    ours.log_epoch(row(2))
    ours.close()
    assert read_metrics(path) == [row(1), row(2)]


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("epochs", [0, 1, 4])
def test_curves_are_a_picture(tmp_path: Path, epochs: int) -> None:
    plot_curves([row(epoch) for epoch in range(1, epochs + 1)], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 500


def test_curves_that_cannot_be_written_are_named_and_leave_those_before(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"before")
    (tmp_path / "curves.png.partial").mkdir()
    with pytest.raises(OSError, match=r"curves\.png'$"):
        plot_curves([row(1)], path)
    assert path.read_bytes() == b"before"


def test_curves_show_the_rows(tmp_path: Path) -> None:
    for name, rows in (("a", [row(1), row(2)]), ("b", [row(1), {**row(2), "val_accuracy": [0.9, 0.1]}])):
        plot_curves(rows, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
