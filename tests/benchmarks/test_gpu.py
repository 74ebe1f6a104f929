"""The list of GPU steps, run on harmless commands; and that each of its commands is one that can be given."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from benchmarks.gpu import MSMLP, TIMED_OUT, Result, Step, run, steps
from benchmarks.gpu_training import busy_samples, measure
from benchmarks.untrained import write_untrained
from msmlp.main import app
from msmlp.model.nn.config import PRESETS
from msmlp.model.training.batches import Arrays
from msmlp.model.training.recipes import RECIPES
from msmlp.model.weights import load_calibration
from tests.servers import wait_until


def python(name: str, program: str, seconds: float = 60, **settings: str) -> Step:
    return Step(name, (sys.executable, "-c", program), seconds, settings)


def counting(name: str, file: Path) -> Step:
    return python(name, f"open({str(file)!r}, 'a').write('x'); print('result')")


def results(out: Path) -> list[Result]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def statuses(out: Path) -> list[tuple[str, int]]:
    return [(result["step"], result["status"]) for result in results(out)]


def test_what_succeeded_is_not_run_again_and_what_failed_is(tmp_path: Path) -> None:
    out, runs, mark = tmp_path / "out", tmp_path / "runs", tmp_path / "mark"
    listed = [
        python("fails", f"import pathlib, sys; sys.exit(not pathlib.Path({str(mark)!r}).exists())"),
        counting("works", runs),
    ]
    assert not run(listed, out)
    assert statuses(out) == [("fails", 1), ("works", 0)]
    assert results(out)[1]["printed"] == ["result"]
    mark.touch()
    assert run(listed, out)
    assert statuses(out) == [("fails", 1), ("works", 0), ("fails", 0)]
    assert runs.read_text() == "x"


def test_what_failed_comes_after_what_has_not_run(tmp_path: Path) -> None:
    fails = python("fails", "import sys; sys.exit(3)")
    assert not run([fails], tmp_path)
    assert not run([fails, python("new", "")], tmp_path)
    assert statuses(tmp_path) == [("fails", 3), ("new", 0), ("fails", 3)]


def test_a_result_is_written_as_its_step_ends(tmp_path: Path) -> None:
    second = python("second", f"print(open({str(tmp_path / 'results.jsonl')!r}).read())")
    assert run([python("first", "import os; print(os.environ['WORD'])", WORD="said"), second], tmp_path)
    seen = results(tmp_path)[1]["printed"]
    assert (seen["step"], seen["status"], seen["printed"]) == ("first", 0, ["said"])
    assert seen["command"].startswith("WORD=said python -c ")


@pytest.mark.parametrize(
    ("printed", "kept"), [('{"a": [\\n1]}', {"a": [1]}), ('{"a": 1}\\n{"b": 2}', [{"a": 1}, {"b": 2}])]
)
def test_a_result_has_the_documents_that_were_printed(tmp_path: Path, printed: str, kept: Any) -> None:
    assert run([python("step", f"print('''{printed}''')")], tmp_path)
    assert results(tmp_path)[0]["printed"] == kept


def test_a_list_that_was_interrupted_while_it_wrote_goes_on(tmp_path: Path) -> None:
    assert run([python("first", "")], tmp_path)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"step": "second", "stat\n')
    assert run([python("first", ""), python("second", "")], tmp_path)


def test_another_command_of_the_same_name_is_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert run([python("step", "")], tmp_path)
    assert run([counting("step", runs)], tmp_path)
    assert runs.read_text() == "x"


def test_a_step_that_takes_too_long_has_failed_and_what_it_said_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import sys, time; print('half', flush=True); print('at work', file=sys.stderr, flush=True); time.sleep(600)"
    )
    assert not run([python("endless", program, seconds=3), python("next", "")], tmp_path)
    assert statuses(tmp_path) == [("endless", TIMED_OUT), ("next", 0)]
    assert results(tmp_path)[0]["printed"] == ["half"]
    assert results(tmp_path)[0]["log"] == ["at work"]
    assert "at work" in capsys.readouterr().out


def test_what_a_step_has_started_ends_with_it(tmp_path: Path) -> None:
    left = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    assert run([python("leaves", left)], tmp_path)
    pid = results(tmp_path)[0]["printed"]

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"

    wait_until(gone)


def test_no_step_begins_for_which_no_time_is_left(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert not run([counting("step", runs)], tmp_path, within=1)
    assert not runs.exists()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_command_of_the_list_can_be_given(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = list(steps(device, Path("data")))
    names = [step.name for step in listed]
    order = ["doctor", "tests", "engine-torch", "engine-onnx", "engine-untrained", "http"]
    assert names[:6] == order
    assert names[6].startswith("training-")
    for step in listed:
        if step.command[: len(MSMLP)] == MSMLP:
            words = list(step.command[len(MSMLP) :])
            command: Any = typer.main.get_command(app)
            while words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            command.make_context(step.name, words)  # raises for an option that is not there
        elif step.command[2].startswith("benchmarks."):
            monkeypatch.setattr("sys.argv", list(step.command[2:]))
            import_module(step.command[2])._options()
    without = [step.name for step in steps(device, None)]
    assert set(without) == set(names) - {"evaluate", "train"}


def test_the_commands_fit_the_time_that_is_lent() -> None:
    assert all(step.seconds <= 600 for step in steps("cuda", Path("data")))


# --- its own benchmarks ----------------------------------------------------------------------------------------------


def test_untrained_weights_send_half_of_the_images_on_at_every_exit(tmp_path: Path) -> None:
    weights = write_untrained("tiny", tmp_path / "tiny", "cpu")
    [point] = load_calibration(weights).points
    assert point.name == "balanced"
    assert point.exit_share == pytest.approx((0.5, 0.25, 0.25), abs=0.01)


def test_a_preset_of_one_stage_has_one_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = PRESETS["tiny"]
    monkeypatch.setitem(PRESETS, "one", tiny.model_copy(update={"stages": tiny.stages[-1:]}))
    [point] = load_calibration(write_untrained("one", tmp_path / "one", "cpu")).points
    assert (point.thresholds, point.exit_share) == ((), (1.0,))


@pytest.mark.parametrize("captures", [False, True])
def test_training_is_measured_with_and_without_capture(captures: bool, gpu_or_stand_in: str) -> None:
    pixels = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8)
    data = Arrays(*(each.to(gpu_or_stand_in) for each in (pixels, torch.arange(48) % 10)))
    recipe = RECIPES["best"].model_copy(update={"batch_size": 8})
    row = measure(PRESETS["tiny"], recipe, data, 0.0, compiles=False, captures=captures)
    assert row["images_per_second"] > 0
    assert row["epochs"] == 1
    assert row["fell_back"] == []
    assert (row["busy"] is None) == (gpu_or_stand_in == "cpu")


def test_a_way_that_fell_back_says_so(gpu_or_stand_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(work: object) -> None:
        raise RuntimeError("not while capturing")

    monkeypatch.setattr("msmlp.model.training.capture.record_cuda_graph", refuses)
    pixels = torch.zeros((40, 3, 32, 32), dtype=torch.uint8, device=gpu_or_stand_in)
    data = Arrays(pixels, torch.arange(40, device=gpu_or_stand_in) % 10)
    recipe = RECIPES["best"].model_copy(update={"batch_size": 8})
    [said] = measure(PRESETS["tiny"], recipe, data, 0.0, compiles=False, captures=True)["fell_back"]
    assert "not while capturing" in said


def test_the_busy_share_comes_from_the_gpu_that_trains(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = nvidia_smi / "asked"
    (nvidia_smi / "answer").write_text(" 0\n 50\n[N/A]\n 100\n")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("Of", (), {"uuid": "5-a"}))
    with busy_samples(torch.device("cuda")) as samples:
        wait_until(lambda: asked.exists() and "loop-ms" in asked.read_text())
    assert samples == [0.0, 0.5, 1.0]
    assert "--id=GPU-5-a" in asked.read_text()
