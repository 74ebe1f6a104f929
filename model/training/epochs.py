"""The epochs of a run, from wherever it is: when it is saved, and what a signal does."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from msmlp.model.errors import TrainingInterruptedError
from msmlp.model.training import checkpoint
from msmlp.model.training.batches import Arrays
from msmlp.model.training.checkpoint import Position
from msmlp.model.training.loop import Learner, exit_accuracies, steps_per_epoch, train_epoch
from msmlp.model.training.run_log import MetricsLogger

CHECKPOINT_SECONDS = 10.0
"""The least time between two checkpoints: a GPU trains small epochs faster than a disk can store them."""


def train_epochs(
    out: Path, learner: Learner, training: Arrays, validation: Arrays, position: Position, setup: dict[str, Any]
) -> list[dict[str, Any]]:
    """Train from `position` on, and leave checkpoints of such a `setup` in `out` → the rows of all epochs.

    Raises:
        TrainingStoppedError: a number that is none, or a signal: the first ends the run after its step, and saves it;
            a second one at once.
        OSError: a file cannot be written.
    """
    recipe, epochs = learner.recipe, learner.recipe.epochs
    batch = min(recipe.batch_size, len(training.labels))
    steps = steps_per_epoch(len(training.labels), batch)
    logger = MetricsLogger(out, steps * batch, epochs, position.epochs + len(position.losses) / steps)
    saved, where = -math.inf, position.epochs
    try:
        with _interrupts() as interrupt:
            for epoch in range(position.epochs, epochs):
                loss, speed = train_epoch(
                    learner, training, epoch, logger.tick, losses=position.losses, check=interrupt.check
                )
                accuracies = exit_accuracies(learner, validation, check=interrupt.check)
                row = {"epoch": epoch + 1, "loss": loss, "val_accuracy": accuracies, "images_per_second": speed}
                logger.log_epoch(row)
                position.epochs, position.losses = epoch + 1, []
                decays = recipe.schedule == "wsd" and epoch + 1 == recipe.decay_begins
                if decays:
                    checkpoint.save(out / checkpoint.STABLE, learner, position, setup)
                if decays or epoch + 1 == epochs or time.monotonic() - saved >= CHECKPOINT_SECONDS:
                    checkpoint.save(out / checkpoint.LAST, learner, position, setup)
                    where, saved = position.epochs, time.monotonic()
            interrupt.check()
    except _InterruptError:
        if not learner.is_finite():  # the checkpoint before is the last good one
            raise _stopped(out, Position(where), epochs) from None
        checkpoint.save(out / checkpoint.LAST, learner, position, setup)
        raise _stopped(out, position, epochs) from None
    except KeyboardInterrupt:  # a second one
        raise _stopped(out, Position(where), epochs) from None
    finally:
        logger.close()
    return logger.rows


def _stopped(out: Path, saved: Position, epochs: int) -> TrainingInterruptedError:
    done = len(saved.losses)
    steps = f" and {done} step{'s' if done > 1 else ''}" if done else ""
    return TrainingInterruptedError(
        f"interrupted; {saved.epochs} of {epochs} epochs{steps} are saved in {out}: continue with --resume"
    )


class _InterruptError(Exception):
    """Told to end, at a moment at which the weights belong together."""


class _Interrupt:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:  # a second one ends at once
            raise KeyboardInterrupt
        self.wanted = True

    def check(self) -> None:
        if self.wanted:
            raise _InterruptError


@contextmanager
def _interrupts() -> Iterator[_Interrupt]:
    """SIGINT and SIGTERM end the run where `check` is called, not in the middle of a step."""
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
