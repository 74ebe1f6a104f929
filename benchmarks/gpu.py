"""Everything to run on a machine with a GPU, in order of value, as one resumable list of commands.

    python -m benchmarks.gpu --out build/gpu --data .data/cifar-10-batches-py

First the CUDA tests, then the engine on the shipped weights, then the speed of training (with --data only). What a step
prints goes to OUT/<step>.out and OUT/<step>.log. OUT/state.json is written after every step: one that succeeded is not
run again, so the same command continues where the last one stopped, on another machine too if OUT goes with it. A step
that fails is recorded, and the rest still run. Exit status 0: all steps have succeeded; 1: some have not.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MSMLP = (sys.executable, "-c", "from msmlp.main import main; main()")
TIMED_OUT = 124
LINES_OF_A_LOG = 15


@dataclass(frozen=True)
class Step:
    """One command; `seconds` is the longest it may take."""

    name: str
    command: tuple[str, ...]
    seconds: float = 300

    @property
    def typed(self) -> str:
        """The command as a user would type it."""
        if self.command[: len(MSMLP)] == MSMLP:
            return shlex.join(("msmlp", *self.command[len(MSMLP) :]))
        return shlex.join(("python", *self.command[1:]))


def steps(out: Path, data: Path | None = None) -> Iterator[Step]:
    """The list, most valuable first.

    Args:
        out: where trainings leave their folders.
        data: CIFAR-10, for what needs images; without it those steps are left out.
    """
    given = () if data is None else ("--data", str(data))
    yield _msmlp("doctor", "doctor", "--json")
    yield Step("tests", (sys.executable, "-m", "pytest", "-q", "-m", "gpu"))
    for backend in ("torch", "onnx"):
        cuda = ("--backend", backend, "--device", "cuda")
        yield _msmlp(f"engine-{backend}", "bench", "engine", *cuda, *given, "--load-seconds", "5", "--json")
    if data is None:
        return
    test = ("--weights", "weights/cifar10-s", "--split", "test", "--device", "cuda")
    yield _msmlp("evaluate", "evaluate", *test, *given, "--json")
    # metrics.jsonl of each training has the images/s of every epoch.
    for preset in ("s", "m", "paper-s"):
        folder = str(out / f"train-{preset}")
        size = ("--preset", preset, "--epochs", "4", "--device", "cuda", "--resume")
        yield _msmlp(f"train-{preset}", "train", *given, *size, "--out", folder, "--json")


def run(listed: list[Step], out: Path) -> bool:
    """Run every step that has not succeeded yet → whether all have now."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "state.json"
    state: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for step in listed:
        if _succeeded(state, step):
            print(f"{step.name}: done before")
            continue
        print(f"{step.name}: {step.typed}", flush=True)
        state[step.name] = _run(step, out)
        _write(file, state)
        _tell(step, state[step.name], out)
    return all(_succeeded(state, step) for step in listed)


def _succeeded(state: dict[str, Any], step: Step) -> bool:
    """Whether this command has succeeded before, unchanged."""
    return bool(step.name in state and state[step.name]["status"] == 0 and state[step.name]["command"] == step.typed)


def _run(step: Step, out: Path) -> dict[str, Any]:
    start = time.monotonic()
    with (out / f"{step.name}.out").open("wb") as printed, (out / f"{step.name}.log").open("wb") as log:
        try:
            status = subprocess.run(step.command, stdout=printed, stderr=log, timeout=step.seconds).returncode
        except subprocess.TimeoutExpired:
            status = TIMED_OUT
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "command": step.typed}


def _write(file: Path, state: dict[str, Any]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(state, indent=1) + "\n")
    new.replace(file)  # atomic, because the machine may disappear at any time


def _tell(step: Step, ended: dict[str, Any], out: Path) -> None:
    if ended["status"] == 0:
        print(f"{step.name}: done in {ended['seconds']:g} s", flush=True)
        return
    print(f"{step.name}: failed with status {ended['status']} after {ended['seconds']:g} s", flush=True)
    for kind in ("out", "log"):
        lines = (out / f"{step.name}.{kind}").read_text(errors="replace").splitlines()
        print("\n".join(lines[-LINES_OF_A_LOG:]), flush=True)


def _msmlp(name: str, *arguments: str) -> Step:
    return Step(name, (*MSMLP, *arguments))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="outputs, trainings and state.json")
    parser.add_argument("--data", type=Path, help="CIFAR-10; without it nothing is trained or evaluated")
    options = parser.parse_args()
    return 0 if run(list(steps(options.out, options.data)), options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
