"""Backend and scheduler together: one batch at a time, and what came of it as messages."""

import logging
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model.backends.protocol import StageBackend, StageOutput
from model.errors import DeviceError
from model.exits import Reason
from service.engine.messages import (
    Answers,
    Cancel,
    Cancelled,
    Failed,
    History,
    Inbound,
    Load,
    Outbound,
    Ran,
    Shadowed,
    Submit,
)
from service.engine.scheduler import Batch, Scheduler, Settled, Slots
from service.engine.times import StageTimes

log = logging.getLogger("msmlp.engine")

MAX_FAILURES = 3
"""So many failed batches in a row mean a broken device: the worker ends, and with it a server that seems healthy."""


class Loop:
    """Runs batches, and keeps the columns that only answers need.

    `shadow_every` and `reserve` are the scheduler's; `seconds` [K, buckets] is what warm-up measured;
    `publish` is shown who waits, before every batch.
    """

    def __init__(
        self,
        backend: StageBackend,
        send: Callable[[Outbound], None],
        *,
        seconds: NDArray[np.float64] | None = None,
        shadow_every: int = 0,
        reserve: int = 0,
        publish: Callable[[Load], None] = lambda load: None,
    ) -> None:
        self.backend, self._send, self._publish = backend, send, publish
        self.scheduler = Scheduler(
            backend.capacity, backend.stages, backend.buckets[-1], shadow_every=shadow_every, reserve=reserve
        )
        unknown = np.zeros((backend.stages, len(backend.buckets)))
        self.times = StageTimes(backend.buckets, unknown if seconds is None else seconds)
        self._history = History.empty(backend.capacity, backend.stages)
        self._probabilities = np.zeros((backend.capacity, backend.classes), dtype=np.float32)
        self._stream = np.zeros(backend.capacity, dtype=bool)
        self._failures = 0

    def receive(self, message: Inbound) -> None:
        """Take one message in."""
        if isinstance(message, Submit):
            try:
                slots = self.backend.admit(message.pixels)
            except Exception as error:
                self._fail(np.array([message.request]), error)
                return
            self._stream[slots] = message.terms.stream
            self.scheduler.add(slots, message.request, message.terms, message.arrival)
        elif isinstance(message, Cancel):
            slots = self.scheduler.cancel(message.request)
            self.backend.release(slots)
            self._send(Cancelled("queue", len(slots)))

    def load(self) -> Load:
        """What waits now."""
        return Load(self.scheduler.waiting(), self.scheduler.oldest_since())

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run, not even a shadow."""
        return self.scheduler.idle()

    @property
    def busy(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self.scheduler.waiting().any())

    def run_once(self) -> None:
        """Let go whose deadline has come, then run one batch, if anything waits."""
        start = time.monotonic()
        self._give_up(start)
        batch = self.scheduler.next_batch(start)
        self._publish(self.load())  # now: while the batch runs, those aboard wait no longer
        if batch is None:
            return
        try:
            output = self.backend.collect(self.backend.launch(batch.stage, batch.slots))
        except Exception as error:
            requests, slots = self.scheduler.abandon(batch)
            self.backend.release(slots)
            self._fail(requests, error)
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                raise DeviceError(f"{self._failures} batches in a row failed") from error
            return
        self._failures = 0
        end = time.monotonic()
        self.times.learn(batch.stage, len(batch.slots), end - start)
        self._send(Ran(batch.stage, len(batch.slots), end - start))
        self._remember(batch, output, end - start)
        self._settle(batch, output, end)

    def _give_up(self, now: float) -> None:
        overdue = self.scheduler.overdue(now, self.times)
        if len(overdue.slots):
            whose = self.scheduler.request[overdue.slots]
            self._answer(overdue.slots, whose, overdue.exits, overdue.reasons)
            self.backend.release(overdue.slots)

    def _remember(self, batch: Batch, output: StageOutput, seconds: float) -> None:
        at, history = (batch.slots, batch.stage), self._history
        history.score[at] = output.score
        history.confidence[at] = output.probabilities.max(axis=1)
        history.class_id[at] = output.probabilities.argmax(axis=1)
        history.queue_seconds[at] = batch.waited
        history.compute_seconds[at] = seconds
        history.batch_size[at] = len(batch.slots)
        self._probabilities[batch.slots] = output.probabilities

    def _settle(self, batch: Batch, output: StageOutput, now: float) -> None:
        whose = self.scheduler.request[batch.slots]  # before tickets become shadows, which are nobody's
        settled = self.scheduler.settle(batch, output.score, now)
        reasons = np.full(len(batch.slots), Reason.GOES_ON, dtype=np.int8)
        reasons[settled.left] = settled.reasons
        # Streams hear of every exit, the others of their last.
        told = self._stream[batch.slots] & (whose >= 0)
        told[settled.left] = True
        rows = np.flatnonzero(told)
        if len(rows):
            exits = np.full(len(rows), batch.stage + 1)
            self._answer(batch.slots[rows], whose[rows], exits, reasons[rows])
        self._check_shadows(batch, settled)
        if len(settled.cancelled):
            self._send(Cancelled("batch", len(settled.cancelled)))
        self.backend.release(settled.free)

    def _answer(
        self, slots: Slots, requests: NDArray[np.int64], exits: NDArray[np.int64], reasons: NDArray[np.int8]
    ) -> None:
        self._send(
            Answers(
                request=requests,
                index=self.scheduler.index[slots],
                exit=exits,
                reason=reasons,
                probabilities=self._probabilities[slots],
                history=self._history.take(slots),
            )
        )

    def _check_shadows(self, batch: Batch, settled: Settled) -> None:
        if len(settled.checked):
            classes = self._history.class_id[batch.slots[settled.checked]]
            then = classes[np.arange(len(classes)), settled.left_at - 1]
            self._send(Shadowed(settled.left_at, then == classes[:, batch.stage]))

    def _fail(self, requests: NDArray[np.int64], error: Exception) -> None:
        log.error("a batch failed", exc_info=error)
        self._send(Failed(requests, f"the device failed ({type(error).__name__})"))
