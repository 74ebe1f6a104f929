"""Runs one step: its commands start together, stop together, and are recorded one by one."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_campaign.gpu import Busy
from benchmarks.gpu_campaign.records import Records, Run, State, speed
from benchmarks.gpu_campaign.steps import Command, Step
from msmlp.model.training.run_log import METRICS, read_metrics

STOPPING_SECONDS = 25
"""How long a command may take to stop before it is killed; its last checkpoint is safe either way."""
POLL_SECONDS = 0.1


class _Process:
    """One command on its way."""

    def __init__(self, command: Command, work: Path, threads: int, commit: str | None) -> None:
        self.command, self.work = command, work
        self.start = time.monotonic()
        self.interrupted = False
        self.seconds: float | None = None
        self.first_epoch_seconds: float | None = None
        self._epochs_before = len(self._epochs())
        # What a command prints is a result only when it is whole.
        self._output = work / f"{command.output}.partial" if command.output else None
        # Side by side, the processes share the cores as well.
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        if commit is not None:
            environment["GIT_COMMIT"] = commit  # for the manifest, as a lent machine has no clone
        with (work / f"{command.name}.log").open("a") as log:
            output = self._output.open("w") if self._output else log
            self._popen = subprocess.Popen(command.argv, stdout=output, stderr=log, env=environment)
            output.close()

    def look(self) -> bool:
        """Note how far it is → whether it still runs."""
        running = self._popen.poll() is None
        if not running and self.seconds is None:
            self.seconds = time.monotonic() - self.start
        if self.first_epoch_seconds is None and len(self._epochs()) > self._epochs_before:
            self.first_epoch_seconds = time.monotonic() - self.start
        return running

    def interrupt(self) -> None:
        """Ask it to stop."""
        self.interrupted = True
        self._popen.send_signal(signal.SIGINT if self.command.folder else signal.SIGTERM)

    def kill(self) -> None:
        """Do not ask."""
        self._popen.kill()
        self._popen.wait()
        self.look()

    def result(self, busy_share: float | None, side_by_side: int) -> Run:
        """How it ended. One that was asked to stop and ended well all the same is done."""
        status = self._popen.wait()
        state: State = "done" if status == 0 else "stopped" if self.interrupted else "failed"
        if self._output and state == "done":
            self._output.replace(self.work / str(self.command.output))
        epochs = self._epochs()
        return Run(
            state=state,
            exit_status=status,
            seconds=round(self.seconds or time.monotonic() - self.start, 2),
            side_by_side=side_by_side,
            epochs=len(epochs) if self.command.folder else None,
            first_epoch_seconds=self.first_epoch_seconds,
            images_per_second=speed(epochs[self._epochs_before :]),
            busy_share=busy_share,
        )

    def _epochs(self) -> list[dict[str, Any]]:
        return read_metrics(self.work / self.command.folder / METRICS) if self.command.folder else []


def run_step(step: Step, records: Records, device: str, seconds: float) -> dict[str, Run]:
    """Run a step for at most `seconds` and a moment to stop → how each command ended, which the records say too."""
    deadline = time.monotonic() + seconds
    threads = max(1, (os.cpu_count() or 1) // len(step.commands))
    busy = Busy(device)
    processes: list[_Process] = []
    try:
        for command in step.commands:
            processes.append(_Process(command, records.work, threads, records.where.git_commit))
        _watch(processes, busy, deadline)
        share = busy.share()
        _stop(processes)
    finally:
        busy.close()
        for process in processes:
            if process.look():
                process.kill()
    runs = {process.command.name: process.result(share, len(processes)) for process in processes}
    for process in processes:
        records.add(process.command, runs[process.command.name])
    return runs


def _watch(processes: list[_Process], busy: Busy, deadline: float) -> None:
    while _running(processes) and time.monotonic() < deadline:
        busy.look()
        if all(process.first_epoch_seconds is not None for process in processes):
            busy.settled()
        time.sleep(POLL_SECONDS)


def _stop(processes: list[_Process]) -> None:
    for process in processes:
        if process.look():
            process.interrupt()
    patience = time.monotonic() + STOPPING_SECONDS
    while _running(processes) and time.monotonic() < patience:
        time.sleep(POLL_SECONDS)


def _running(processes: list[_Process]) -> bool:
    # Every one is looked at, also behind one that runs: each notes its own end.
    return sum(process.look() for process in processes) > 0
