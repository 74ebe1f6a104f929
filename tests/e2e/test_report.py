"""`msmlp report` as people type it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Call, run_msmlp


def test_a_folder_of_runs_is_a_table(tiny_weights: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("report", tiny_weights.parent) == 0
    printed = capsys.readouterr()
    assert "| `tiny-digits` |" in printed.out
    assert "with --out FOLDER" in printed.err
    assert call("report", "tables", tiny_weights.parent) == 0
    assert capsys.readouterr().out == printed.out


def test_with_out_it_is_plots_too(
    tiny_weights: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("report", tiny_weights, "--out", tmp_path / "page") == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert {path.name for path in (tmp_path / "page").iterdir()} == {
        "report.md",
        "curves.png",
        "accuracy-against-gflops.png",
    }


def test_runs_as_one_document_and_what_is_left_out_on_stderr(tiny_weights: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_weights, tmp_path / "runs" / "good")
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "manifest.json").write_text("{}")
    done = run_msmlp("report", "--json", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [run["name"] for run in document["runs"]] == ["tiny-digits"]
    [line] = done.stderr.splitlines()
    assert line == f"left out: {document['skipped'][0]}"


def test_completion_knows_the_commands_below_report() -> None:
    asked = {"_MSMLP_COMPLETE": "complete_bash", "COMP_WORDS": "msmlp report ga", "COMP_CWORD": "2"}
    assert run_msmlp(**asked).stdout.split() == ["gallery"]


def test_a_folder_without_runs_is_the_callers_mistake(
    tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("report", tmp_path) == 2
    assert "there is no run that can be read" in capsys.readouterr().err


def test_a_gallery_is_drawn_from_ones_own_data(
    tiny_weights: Path, digits_folder: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--weights", tiny_weights, "--data", digits_folder, "--device", "cpu")
    assert call("report", "gallery", *where, "--out", tmp_path / "g.png", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (tmp_path / "g.png").exists()
    assert document["split"] == "test"
    assert all(row["easy"] and row["hard"] for row in document["rows"])


def test_a_card_is_written(
    tiny_weights: Path, digits_folder: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("report", "card", "--weights", tiny_weights, "--data", digits_folder, "--split", "val")
    assert call(*command, "--device", "cpu", "--out", tmp_path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["split"], document["images"]) == ("val", 40)
    assert {path.name for path in tmp_path.iterdir()} == set(document["files"])
    assert str(digits_folder) in (tmp_path / "card.md").read_text()
