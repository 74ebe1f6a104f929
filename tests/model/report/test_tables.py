import json
import re
import shutil
from pathlib import Path

from msmlp.model.report.find import find_runs
from msmlp.model.report.run import Found, architecture
from msmlp.model.report.tables import report, runs_table
from tests.model.report.conftest import rewrite


def table(runs: Path) -> dict[str, dict[str, str]]:
    """The cells of each row by the names of their columns, by the first word of the row."""
    head, _, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in _lines(runs))
    assert all(len(row) == len(head) for row in rows)
    return {row[0].split()[0].strip("`"): dict(zip(head, row, strict=True)) for row in rows}


def _lines(runs: Path) -> list[str]:
    return runs_table(find_runs([runs]).runs)


def named(runs: Path) -> Path:
    """Names that tell the runs apart, as training gives them."""
    for folder in (runs / "plain", runs / "taught" / "student"):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "name": folder.name}))
    return runs


def test_a_row_has_what_is_needed_to_do_a_run_again(runs: Path) -> None:
    rewrite(runs / "plain" / "manifest.json", command="msmlp train --set a='b|c'", git_commit="0123456789ab", epochs=6)
    row = table(named(runs))["plain"]
    manifest = json.loads((runs / "plain" / "manifest.json").read_text())
    assert row["command"] == "`msmlp train --set a='b\\|c'`"
    assert row["commit"] == "0123456789ab"
    assert row["seed"] == "0"
    assert row["epochs"] == "6"
    assert row["images (train / validation)"] == "360 / 40"
    assert row["network"].startswith("`tiny`: 4/16/64 tokens")
    accuracies = [float(part) for part in row["validation accuracy of each exit, %"].split(" / ")]
    assert accuracies == [round(100 * result["accuracy"], 2) for result in manifest["results"]]
    costs = [float(part) for part in row["GFLOPs of each exit"].split(" / ")]
    assert costs == [round(cost, 4) for cost in manifest["gflops_cumulative"]]


def test_who_taught_whom_is_told_by_the_weights_themselves(runs: Path) -> None:
    rows = table(named(runs))
    assert rows["plain"]["teacher"] == "none"
    assert rows["student"]["teacher"] == "`teacher`"
    assert rows["teacher"]["run"] == "`teacher` (teacher)"
    assert rows["teacher"]["GFLOPs of each exit"] == "1.25"
    assert rows["teacher"]["network"] == "`teacher-s`: resnet, stem 16, widths 16/32, blocks 2"
    shutil.rmtree(runs / "teacher")
    assert table(runs)["student"]["teacher"] == "`teacher` (not among these)"


def test_an_unfinished_run_says_how_far_it_got(runs: Path) -> None:
    row = table(named(runs))["half"]
    assert row["epochs"] == "2 of 6"
    assert row["command"] == "-"


def test_what_is_unusual_of_a_network_is_said_and_what_is_meaningless_is_not(runs: Path) -> None:
    [run] = find_runs([runs / "plain"]).runs
    unusual = run.model_copy(update={"network": {**run.network, "reuse": "first", "reuse_norm": False}})
    assert architecture(unusual).endswith("reuse first, reuse_norm False")
    single = run.model_copy(update={"network": {**run.network, "stages": run.network["stages"][-1:]}})
    assert architecture(single) == "64 tokens, width 32, 2 blocks"


def test_runs_of_one_name_are_told_apart_by_their_folders(runs: Path) -> None:
    lines = "\n".join(_lines(runs))
    assert "`tiny-digits (plain)`" in lines
    assert "`tiny-digits (taught/student)`" in lines


def test_the_page_names_what_was_left_out(runs: Path) -> None:
    (runs / "plain" / "manifest.json").write_text("{")
    page = report(find_runs([runs]), ["curves.png"])
    assert "3 runs, 1 unfinished" in page
    assert "![curves](curves.png)" in page
    assert re.search(r"^- .*plain/manifest.json is not JSON$", page, flags=re.MULTILINE)


def test_a_summary_written_as_json_is_read_again(runs: Path) -> None:
    found = find_runs([runs])
    assert runs_table(Found.model_validate_json(found.model_dump_json()).runs) == runs_table(found.runs)
