"""One training after the other, each in a folder of its own: skipped when finished, resumed when interrupted."""

import fcntl
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.paper.measure import OUTPUTS, measure_run
from benchmarks.paper.plan import Run, words
from msmlp.model.errors import OptionError, TrainingInterruptedError, TrainingStoppedError
from msmlp.model.training.recipes import TrainOptions
from msmlp.model.training.run_log import read_metrics
from msmlp.model.training.trainer import train

Say = Callable[[str], None]


def state(folder: Path) -> str:
    """`done`, `running`, how far an interrupted run came, or `missing`."""
    if (folder / OUTPUTS).exists():
        return "done"
    if not folder.is_dir():
        return "missing"
    rows = read_metrics(folder / "metrics.jsonl")
    epochs = f"{len(rows)} epochs done"
    speed = f", {rows[-1]['images_per_second']:.0f} images/s" if rows else ""
    return f"{'running' if is_running(folder) else 'interrupted'}, {epochs}{speed}"


def is_running(folder: Path) -> bool:
    """Whether a process is training in the folder: it has locked it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def train_all(work: Sequence[tuple[Run, TrainOptions]], say: Say, finished: Callable[[], None]) -> bool:
    """Train and measure what is neither done nor running elsewhere, and call `finished` after each run.

    A run that cannot go on (a loss that is not finite, a full disk) is reported, and the next begins → whether there
    was none. A signal ends all of it with TrainingInterruptedError.
    """
    well = True
    for run, options in work:
        before = state(options.out)
        say(f"{run.name}: {before}")
        if before.startswith(("done", "running")):
            continue
        try:
            _train(options)
        except TrainingInterruptedError:
            raise
        except TrainingStoppedError as error:
            say(f"{run.name}: {error}")
            well = False
            continue
        except OptionError:
            if not is_running(options.out):
                raise
            say(f"{run.name}: another process began it")
            continue
        speed = measure_run(options).about["images_per_second"]
        say(f"{run.name}: done, trained at {speed:.0f} images/s")
        finished()
    return well


def _train(options: TrainOptions) -> None:
    before, sys.argv = sys.argv, words(options)  # the manifest tells the command of its training
    try:
        train(options)
    finally:
        sys.argv = before
