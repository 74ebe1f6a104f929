"""One step: started together, stopped together, recorded one by one; a run that goes on on another machine."""

import json
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu_campaign import gpu, parcels, runner
from benchmarks.gpu_campaign.__main__ import run_all
from benchmarks.gpu_campaign.archive import pack, restore
from benchmarks.gpu_campaign.gpu import Busy, device_name
from benchmarks.gpu_campaign.records import Records, Where, speed
from benchmarks.gpu_campaign.runner import run_step
from benchmarks.gpu_campaign.schedule import Schedule
from benchmarks.gpu_campaign.steps import MSMLP, Command, Step
from msmlp.model.training.run_log import METRICS, read_metrics
from msmlp.model.training.trainer import FILE


def records_in(work: Path) -> Records:
    work.mkdir(exist_ok=True)
    return Records(work, Where("cpu", "2.11.0", "abc"))


def shell(name: str, script: str, output: str | None = None, needs: tuple[str, ...] = ()) -> Command:
    return Command(name, ("sh", "-c", script), output=output, needs=needs)


def test_commands_start_together_and_stop_together(tmp_path: Path) -> None:
    records = records_in(tmp_path / "work")
    # Each waits for the other's file, so one alone would never end.
    met = tuple(
        shell(me, f"touch {tmp_path}/{me}; until [ -e {tmp_path}/{it} ]; do sleep 0.05; done")
        for me, it in ("ab", "ba")
    )
    endless = Command("endless", (sys.executable, "-c", "import time; time.sleep(600)"), folder="endless")
    deaf = shell("deaf", "sleep 600")
    runs = run_step(Step("group", (*met, endless, deaf), 1), records, "cpu", 3)
    assert {name: run.state for name, run in runs.items()} == {
        "a": "done",
        "b": "done",
        "endless": "stopped",
        "deaf": "stopped",
    }
    for name in runs:
        record = records.read(name)
        assert record is not None
        assert record["side_by_side"] == 4
        assert record["busy_share"] is None
        assert records.done(name) == (name in "ab")


def test_an_output_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    records = records_in(tmp_path / "work")
    whole = shell("whole", "echo '{}'", output="whole.json")
    torn = shell("torn", "echo '{'; exit 3", output="torn.json")
    runs = run_step(Step("group", (whole, torn), 1), records, "cpu", 60)
    assert (runs["whole"].state, runs["torn"].state, runs["torn"].exit_status) == ("done", "failed", 3)
    assert json.loads((records.work / "whole.json").read_text()) == {}
    assert not (records.work / "torn.json").exists()


def test_a_failure_says_why_and_loses_nothing_of_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = records_in(tmp_path / "work")
    plan = [
        Step("wrong", (shell("wrong", "echo the reason >&2; exit 2"),), 1),
        Step("after", (shell("after", "true", needs=("wrong",)),), 1),
        Step("other", (shell("other", "echo 1", output="other.json"),), 1),
    ]
    schedule = Schedule(plan, records, records.work)
    run_all(schedule, "cpu", time.monotonic() + 600)
    assert schedule.failed == {"wrong"}
    assert "the reason" in capsys.readouterr().out
    assert records.read("after") is None
    assert (records.work / "other.json").read_text() == "1\n"


@pytest.fixture
def time_is_up_when(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], bool]], None]:
    """Lets the runner's clock, and no other, jump by a day as soon as something has happened."""

    def install(happened: Callable[[], bool]) -> None:
        clock = SimpleNamespace(sleep=time.sleep, monotonic=lambda: time.monotonic() + 86400 * happened())
        monkeypatch.setattr(runner, "time", clock)

    return install


@pytest.mark.timeout(600)  # many processes, on a machine that may be busy
def test_a_half_done_run_goes_on_on_another_machine(
    cifar10_folder: Path, tmp_path: Path, time_is_up_when: Callable[[Callable[[], bool]], None]
) -> None:
    work, other = tmp_path / "work", tmp_path / "other"

    def step(there: Path) -> Step:
        argv = (*MSMLP, "train", "--data", str(cifar10_folder), "--preset", "tiny", "--recipe", "quick", "--device")
        argv += ("cpu", "--out", str(there / "run"), "--resume", "--epochs", "100000", "--set", "augment=none")
        return Step("run", (Command("run", argv, folder="run"),), 1)

    time_is_up_when((work / "run" / FILE).exists)
    plan, records = step(work), records_in(work)
    run = run_step(plan, records, "cpu", 600)["run"]
    assert run.state == "stopped"
    assert run.first_epoch_seconds is not None
    rows = read_metrics(work / "run" / METRICS)
    assert run.epochs == len(rows) > 0

    pack(parcels.parcels(work, Schedule([plan], records, work)), work, tmp_path / "out")
    assert restore(tmp_path / "out", other) == []
    checkpoint = other / "run" / FILE
    brought = checkpoint.stat().st_ino
    # Not as soon as its metrics have a row more: who is stopped before the checkpoint of an epoch forgets the epoch.
    time_is_up_when(lambda: checkpoint.stat().st_ino != brought)
    again = run_step(step(other), records_in(other), "cpu", 600)["run"]
    assert again.state == "stopped"
    # The last row may be of an epoch whose checkpoint was not written any more.
    assert read_metrics(other / "run" / METRICS)[: len(rows) - 1] == rows[:-1]
    assert again.epochs is not None
    assert again.epochs > len(rows)


def test_images_a_second_are_the_median_without_the_epoch_that_compiles() -> None:
    assert speed([]) is None
    assert speed([{"images_per_second": 10}]) == 10
    assert speed([{"images_per_second": value} for value in (10, 500, 400, 600)]) == 500


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that answers with the file `answer` beside it, and counts in `asked`."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho >> "{tmp_path}/asked"\ncat "{tmp_path}/answer"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(gpu, "EVERY_SECONDS", 0)
    return tmp_path / "answer"


def look_until_asked(busy: Busy, more: int, asked: Path) -> None:
    def count() -> int:
        return len(asked.read_text().splitlines()) if asked.exists() else 0

    # One more than that: whoever asks anew has taken in the answer before.
    until = count() + more + 1
    while count() < until:
        busy.look()
        time.sleep(0.01)


def test_busy_counts_from_when_training_has_settled(nvidia_smi: Path) -> None:
    asked = nvidia_smi.with_name("asked")
    nvidia_smi.write_text("12\n")
    busy = Busy("cuda")
    look_until_asked(busy, 2, asked)
    assert busy.share() is None  # compiling
    nvidia_smi.write_text("90\n")
    look_until_asked(busy, 2, asked)
    busy.settled()
    look_until_asked(busy, 3, asked)
    busy.settled()  # again and again, as long as it runs
    assert busy.share() == 0.9
    busy.close()


def test_busy_is_unknown_where_nobody_says(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = nvidia_smi.with_name("asked")
    nvidia_smi.write_text("[N/A]\n")
    busy = Busy("cuda")
    busy.settled()
    look_until_asked(busy, 2, asked)
    assert busy.share() is None
    busy.close()
    asked.unlink()
    on_a_cpu = Busy("cpu")
    on_a_cpu.settled()
    on_a_cpu.look()
    assert not asked.exists()
    monkeypatch.setenv("PATH", "")
    without = Busy("cuda")
    without.settled()
    without.look()
    assert without.share() is None


def test_the_device_goes_by_its_own_name(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi.write_text("NVIDIA H200\n")
    assert device_name("cuda") == "NVIDIA H200"
    assert device_name("cpu").startswith("cpu (")
    monkeypatch.setenv("PATH", "")
    assert device_name("cuda") == "cuda"
