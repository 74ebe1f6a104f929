import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from msmlp.model.errors import DataError
from msmlp.model.nn.flops import cumulative_gflops
from msmlp.model.report.find import find_runs
from msmlp.model.report.run import architecture
from msmlp.model.weights import load_calibration, load_weights


def test_every_run_below_a_folder_is_found_whatever_its_kind(runs: Path) -> None:
    found = find_runs([runs])
    assert found.skipped == []
    assert [(run.folder, run.kind, run.finished) for run in found.runs] == [
        ("half", "cascade", False),
        ("plain", "cascade", True),
        ("taught/student", "cascade", True),
        ("teacher", "teacher", True),
    ]


def test_a_finished_run_is_what_its_folder_says(runs: Path) -> None:
    weights = load_weights(runs / "plain")
    manifest, points = weights.manifest, load_calibration(weights).points
    [run] = find_runs([runs / "plain"]).runs
    assert run.folder == "plain"
    assert [exit.accuracy for exit in run.exits] == [row["accuracy"] for row in manifest.results]
    assert [exit.gflops for exit in run.exits] == manifest.gflops_cumulative
    assert [point.name for point in run.operating_points] == [point.name for point in points]
    assert (run.images, run.validation_images) == (360, 40)
    assert run.command == manifest.training["command"]
    assert [row.epoch for row in run.curve] == [1, 2, 3, 4, 5, 6]
    assert architecture(run) == "4/16/64 tokens, width 32/32/32, 2/2/2 blocks, reuse all"


def test_an_unfinished_run_is_told_from_its_checkpoint_and_its_curve(runs: Path) -> None:
    half = next(run for run in find_runs([runs]).runs if run.folder == "half")
    rows = [json.loads(line) for line in (runs / "half" / "metrics.jsonl").read_text().splitlines()]
    manifest = load_weights(runs / "plain").manifest
    assert (half.epochs_done, half.epochs, half.images, half.seed) == (2, 6, 360, 0)
    assert [exit.accuracy for exit in half.exits] == rows[-1]["val_accuracy"]
    assert [exit.gflops for exit in half.exits] == cumulative_gflops(manifest.cascade)
    assert (half.command, half.recipe, half.teacher) == (None, None, None)
    # A checkpoint does not name its data; a finished run with the same validation images does.
    assert half.data == manifest.training["data"]
    [alone] = find_runs([runs / "half"]).runs
    assert alone.data is None


def test_a_run_reached_twice_stands_once(runs: Path) -> None:
    assert len(find_runs([runs, runs / "plain", runs]).runs) == 4


def test_hidden_folders_are_left_alone(runs: Path) -> None:
    shutil.copytree(runs / "plain", runs / ".trash" / "plain")
    assert len(find_runs([runs]).runs) == 4


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(bytes(blob))


def foreign(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "a web page", "icons": []}')


def no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def other_rows(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')


def not_text(folder: Path) -> None:
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")


def short_of_an_exit(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["results"].pop()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def odd_record(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["training"]["images"] = "many"
    (folder / "manifest.json").write_text(json.dumps(manifest))


def torn_checkpoint(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    blob = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(blob[: len(blob) // 2])


def first_epoch(folder: Path) -> None:
    for name in ("manifest.json", "checkpoint.pt"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_bit, "model.safetensors is damaged"),
        (foreign, "format None is unknown"),
        (no_json, "manifest.json is not JSON"),
        (other_rows, "metrics.jsonl holds other rows than a training writes"),
        (not_text, "metrics.jsonl holds other rows than a training writes"),
        (short_of_an_exit, "2 results for 3 exits"),
        (odd_record, "images: Input should be a valid integer"),
        (torn_checkpoint, "checkpoint.pt cannot be read"),
        (first_epoch, "no checkpoint: no run, or one in its first epoch"),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line_and_the_others_are_shown(
    damage: Callable[[Path], None], said: str, runs: Path
) -> None:
    damage(runs / "plain")
    found = find_runs([runs])
    assert [run.folder for run in found.runs] == ["half", "taught/student", "teacher"]
    [line] = found.skipped
    assert said in line
    assert "plain" in line
    assert "\n" not in line


def test_a_damaged_teacher_is_one_line(runs: Path) -> None:
    flip_a_bit(runs / "teacher")
    assert "model.safetensors is damaged" in find_runs([runs]).skipped[0]
    (runs / "teacher" / "teacher.json").write_text('{"format": 1, "name": "t"}')
    [line] = find_runs([runs]).skipped
    assert "teacher: network: Field required" in line


def test_where_there_is_no_run_it_is_said(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        find_runs([runs, tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no run that can be read in .*empty"):
        find_runs([tmp_path / "empty"])
    foreign(runs / "plain")
    with pytest.raises(DataError, match="format None is unknown"):
        find_runs([runs / "plain"])
