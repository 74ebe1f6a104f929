"""Everything to run on a machine with a GPU, in order of value, as one resumable list of commands.

    python -m benchmarks.gpu --out build/gpu --data .data/cifar-10-batches-py

First the CUDA tests; then the engine on the shipped weights, and on untrained `paper-s` beside `mixer-s`; then serving
over HTTP; then the speed of training with and without capture; with --data also what needs images. Each step appends a
line to OUT/results.jsonl as it ends: what it printed, how long it took, and the end of its log if it failed. A step
that succeeded is not run again, so the same command continues where the last one stopped, on another machine too if OUT
goes with it; what failed comes after what has not run. `--within SECONDS` ends the list in time. `--device cpu` is a
rehearsal, with tiny lengths. Exit status 0: all steps have succeeded; 1: some have not.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

MSMLP = (sys.executable, "-m", "msmlp")
TIMED_OUT = 124
LINES_OF_A_LOG = 40
LEAST_SECONDS = 20
"""With less time left no step is begun."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One command; `seconds` is the longest it may take, `settings` are in its environment."""

    name: str
    command: tuple[str, ...]
    seconds: float
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def typed(self) -> str:
        """The command as a user would type it."""
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        if self.command[: len(MSMLP)] == MSMLP:
            return shlex.join((*settings, "msmlp", *self.command[len(MSMLP) :]))
        return shlex.join((*settings, "python", *self.command[1:]))


LENGTHS = {
    "cuda": {
        "tests": "-m gpu",
        "engine": "--images 2048 --rounds 3 --load-seconds 2",
        "untrained": "",
        "http": "--connections 8,64 --rounds 1 --seconds 2",
        "training": "",
        "train": "--preset s --epochs 4",
    },
    "cpu": {
        "tests": "-k stand-in tests/model",
        "engine": "--images 32 --rounds 1 --max-batch 8 --load-seconds 0.2",
        "untrained": "--images 16 --rounds 1 --max-batch 2",
        "http": "--connections 2 --rounds 1 --seconds 0.2 --bodies image",
        "training": "--images 16 --batch-size 8 --seconds 0.1",
        "train": "--preset tiny --epochs 1 --limit-per-class 20",
    },
}
"""What the commands are given on each device; a CPU only rehearses them."""


def steps(device: str, data: Path | None) -> Iterator[Step]:
    """The list, most valuable first.

    Args:
        device: cuda or cpu.
        data: CIFAR-10, for what needs images; without it those steps are left out.
    """
    length = {name: words.split() for name, words in LENGTHS[device].items()}
    on = ("--device", device)
    given = () if data is None else ("--data", str(data))
    yield _msmlp("doctor", 60, "doctor", "--json", MSMLP_DEVICE=device, MSMLP_PORT="0")
    yield _module("tests", 240, "pytest", "-v", *length["tests"])
    for backend in ("torch", "onnx"):
        engine = ("bench", "engine", "--backend", backend, *on, *given, *length["engine"])
        yield _msmlp(f"engine-{backend}", 90, *engine, "--json")
    yield _module("engine-untrained", 150, "benchmarks.untrained", "paper-s", "mixer-s", *on, *length["untrained"])
    yield _msmlp("http", 120, "bench", "http", *length["http"], "--json", MSMLP_DEVICE=device, MSMLP_BACKEND="torch")
    for preset in ("s", "paper-s"):
        training = ("benchmarks.gpu_training", "--preset", preset, *on, *length["training"])
        yield _module(f"training-{preset}", 150, *training)
    if data is None:
        return
    test = ("--weights", "weights/cifar10-s", "--split", "test", *on)
    yield _msmlp("evaluate", 90, "evaluate", *test, *given, "--json")
    run = ("--resume", "--out", f"build/gpu-train-{device}")
    yield _msmlp("train", 150, "train", *given, *on, *length["train"], *run, "--json")


def run(listed: list[Step], out: Path, within: float = float("inf")) -> bool:
    """Run every step that has not succeeded yet, as far as `within` seconds allow → whether all have now."""
    out.mkdir(parents=True, exist_ok=True)
    file, end = out / "results.jsonl", time.monotonic() + within
    lines = file.read_text().splitlines() if file.exists() else []
    # The last line may be half of one.
    ended = [each for each in map(_document, lines) if isinstance(each, dict)]
    done = {result["command"] for result in ended if result["status"] == 0}
    tried = {result["command"] for result in ended}
    for step in sorted(listed, key=lambda step: step.typed in tried):
        left = end - time.monotonic()
        if step.typed in done:
            _say(f"{step.name}: done before")
        elif left < LEAST_SECONDS:
            _say(f"{step.name}: no time is left")
        else:
            _say(f"{step.name}: {step.typed}")
            result = _run(step, min(step.seconds, left))
            with file.open("a") as results:
                results.write(json.dumps(result) + "\n")
            _tell(result)
            done |= {step.typed} if result["status"] == 0 else set()
    return all(step.typed in done for step in listed)


def _run(step: Step, seconds: float) -> Result:
    start = time.monotonic()
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as log:
        # A group of its own, so that servers which the command started end with it.
        environment = {**os.environ, **step.settings}
        process = subprocess.Popen(step.command, stdout=printed, stderr=log, env=environment, process_group=0)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = TIMED_OUT
        finally:
            _kill_group(process)
        result = {"step": step.name, "command": step.typed, "status": status}
        result |= {"seconds": round(time.monotonic() - start, 1), "printed": _documents(_text(printed))}
        return result if status == 0 else {**result, "log": _text(log).splitlines()[-LINES_OF_A_LOG:]}


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _documents(text: str) -> Any:
    """What a command printed: one JSON document, or each line, as JSON where it is."""
    try:
        return json.loads(text)
    except ValueError:
        return [_document(line) for line in text.splitlines()]


def _document(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _tell(result: Result) -> None:
    if result["status"] == 0:
        _say(f"{result['step']}: done in {result['seconds']:g} s")
        return
    _say(f"{result['step']}: failed with status {result['status']} after {result['seconds']:g} s")
    printed = result["printed"] if isinstance(result["printed"], list) else [json.dumps(result["printed"])]
    _say("\n".join(map(str, [*printed[-LINES_OF_A_LOG:], *result["log"]])))


def _say(line: str) -> None:
    print(line, flush=True)


def _module(name: str, seconds: float, *words: str) -> Step:
    return Step(name, (sys.executable, "-m", *words), seconds)


def _msmlp(name: str, seconds: float, *arguments: str, **settings: str) -> Step:
    return Step(name, (*MSMLP, *arguments), seconds, settings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of results.jsonl")
    parser.add_argument("--data", type=Path, help="CIFAR-10; without it nothing is evaluated or trained on images")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--within", type=float, default=float("inf"), metavar="SECONDS", help="for all steps together")
    options = parser.parse_args()
    listed = list(steps(options.device, options.data))
    return 0 if run(listed, options.out, options.within) else 1


if __name__ == "__main__":
    sys.exit(main())
