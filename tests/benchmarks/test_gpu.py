"""The list of GPU steps, run on harmless commands; and that each of its commands is one that can be given."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.gpu import MSMLP, TIMED_OUT, Step, run, steps
from msmlp.main import app


def python(name: str, program: str, seconds: float = 60) -> Step:
    return Step(name, (sys.executable, "-c", program), seconds)


def counting(name: str, file: Path) -> Step:
    return python(name, f"open({str(file)!r}, 'a').write('x'); print('result')")


def statuses(out: Path) -> dict[str, int]:
    return {name: step["status"] for name, step in json.loads((out / "state.json").read_text()).items()}


def test_what_succeeded_is_not_run_again_and_what_failed_is(tmp_path: Path) -> None:
    out, runs, mark = tmp_path / "out", tmp_path / "runs", tmp_path / "mark"
    listed = [
        python("fails", f"import pathlib, sys; sys.exit(not pathlib.Path({str(mark)!r}).exists())"),
        counting("works", runs),
    ]
    assert not run(listed, out)
    assert statuses(out) == {"fails": 1, "works": 0}
    assert (out / "works.out").read_text() == "result\n"
    mark.touch()
    assert run(listed, out)
    assert statuses(out) == {"fails": 0, "works": 0}
    assert runs.read_text() == "x"


def test_the_state_is_written_as_each_step_ends(tmp_path: Path) -> None:
    second = python("second", f"print(open({str(tmp_path / 'state.json')!r}).read())")
    assert run([python("first", ""), second], tmp_path)
    assert json.loads((tmp_path / "second.out").read_text())["first"]["status"] == 0


def test_another_command_of_the_same_name_is_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert run([python("step", "")], tmp_path)
    assert run([counting("step", runs)], tmp_path)
    assert runs.read_text() == "x"


def test_a_step_that_takes_too_long_has_failed_and_the_end_of_a_log_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import sys, time; print('at work', file=sys.stderr, flush=True); time.sleep(600)"
    assert not run([python("endless", program, seconds=2), python("next", "")], tmp_path)
    assert statuses(tmp_path) == {"endless": TIMED_OUT, "next": 0}
    assert "at work" in capsys.readouterr().out


def test_every_command_of_the_list_can_be_given(tmp_path: Path) -> None:
    listed = list(steps(tmp_path, Path("data")))
    assert [step.name for step in listed[:3]] == ["doctor", "tests", "engine-torch"]
    for step in listed:
        if step.command[: len(MSMLP)] == MSMLP:
            words = list(step.command[len(MSMLP) :])
            command: Any = typer.main.get_command(app)
            while words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            command.make_context(step.name, words)  # raises for an option that is not there
    without = [step.name for step in steps(tmp_path)]
    assert "engine-onnx" in without
    assert not any(name.startswith("train") for name in without)
