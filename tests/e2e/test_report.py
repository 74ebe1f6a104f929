"""`msmlp report` as people type it."""

import json
from pathlib import Path

import pytest

from tests.processes import Call, run_msmlp


def test_completion_knows_the_commands_below_report() -> None:
    asked = {"_MSMLP_COMPLETE": "complete_bash", "COMP_WORDS": "msmlp report ga", "COMP_CWORD": "2"}
    assert run_msmlp(**asked).stdout.split() == ["gallery"]


@pytest.mark.parametrize("arguments", [["runs"], ["tables", "runs"], ["--json", "runs"]])
def test_tables_of_runs_are_refused_with_what_to_use_instead(
    arguments: list[str], call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("report", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert "removed in 0.2" in line
    assert "msmlp info --weights DIR" in line


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
