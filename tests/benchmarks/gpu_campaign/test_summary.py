"""What was measured, and what was not."""

import json
from pathlib import Path

from benchmarks.gpu_campaign.records import Records, Run, Where
from benchmarks.gpu_campaign.steps import Command, Step
from benchmarks.gpu_campaign.summary import summarize

TRAIN = Command("net.train", ("sh", "-c", "true"), folder="net", note="short schedule")
EVALUATE = Command("net.evaluate", ("sh",), output="net.evaluate.json", needs=("net.train",), note="short schedule")
BENCH = Command("net.bench", ("sh",), output="net.bench.json", needs=("net.train",))
STEPS = [Step(command.name, (command,), 1) for command in (TRAIN, EVALUATE, BENCH)]


def rows_of(text: str, section: str) -> list[list[str]]:
    lines = text.split(f"\n## {section}")[1].split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_what_nobody_measured_says_so(tmp_path: Path) -> None:
    document, text = summarize(STEPS, Records(tmp_path, Where("cpu", "2.11.0", None)))
    assert [row["record"] for row in document["steps"]] == [None, None, None]
    assert [row[1] for row in rows_of(text, "Steps")] == ["not yet measured"] * 3
    assert rows_of(text, "Test images") == [["net", "", "not yet measured", "", "", "short schedule"]]
    assert rows_of(text, "Serving, images/s") == [["net", "", "not yet measured", "", "", "", ""]]


def test_what_was_measured_says_how_and_where(tmp_path: Path) -> None:
    records = Records(tmp_path, Where("NVIDIA H200", "2.11.0", "abc"))
    records.add(TRAIN, Run("stopped", 1, 500.0, 4, epochs=30, images_per_second=40000.0, busy_share=0.87))
    # This time it was stopped before it had an epoch; the earlier figures stand.
    records.add(TRAIN, Run("stopped", 1, 20.0, 4, epochs=30))
    records.add(EVALUATE, Run("done", 0, 9.0, 1))
    exits = [{"exit": 1, "accuracy": 0.9, "gflops": 0.01, "ece": 0.0}]
    points = [{"name": name, "accuracy": 0.8, "mean_gflops": 0.005} for name in ("p01", "balanced")]
    result = {"images": 5000, "exits": exits, "operating_points": points}
    (tmp_path / "net.evaluate.json").write_text(json.dumps(result))
    document, text = summarize(STEPS, records)
    device, note = "NVIDIA H200", "short schedule; side by side with 3 more"
    assert rows_of(text, "Steps")[0] == ["net.train", "stopped", "520", "30", "40000", "87%", device, note]
    assert [row[:5] for row in rows_of(text, "Test images")] == [
        ["net", "exit 1", "90.00 %", "0.01", "5000"],
        ["net", "balanced", "80.00 %", "0.005", "5000"],
    ]
    assert document["steps"][1]["result"] == result
    assert "sh -c true" in text
    assert "Commit abc, torch 2.11.0." in text
