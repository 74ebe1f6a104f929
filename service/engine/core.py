"""Backend and scheduler together: batches out, answers in, and what came of it as messages."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend, StageOutput
from msmlp.model.errors import DeviceError
from msmlp.model.exits.rule import GOES_ON
from msmlp.service.engine.latency import Backlog, StageTimes
from msmlp.service.engine.messages import (
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
from msmlp.service.engine.scheduler import Batch, Overdue, Scheduler, Settled
from msmlp.service.engine.tickets import Slots

log = logging.getLogger("msmlp.engine")

MAX_FAILURES = 3
"""So many failures with no batch between them mean a broken device: the worker ends, and with it a server that seems
healthy. Images that cannot be stored count: of a poisoned context it may be all that is ever tried again."""


@dataclass(frozen=True)
class _Flight:
    """A batch on the device: since when, and when it should be done (monotonic seconds)."""

    batch: Batch
    handle: Any
    launched: float
    ends: float


class Loop:
    """Runs batches, as many at a time as the backend takes, and keeps the columns that only answers need.

    `shadow_every` and `reserve` are the scheduler's; `seconds` [K, buckets] is what warm-up measured;
    `publish` is shown what waits, before every batch and when nothing is left.
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
        stages, capacity = backend.stages, backend.capacity
        unknown = np.zeros((stages, len(backend.buckets)))
        self.times = StageTimes(backend.buckets, unknown if seconds is None else seconds)
        self.scheduler = Scheduler(capacity, stages, self.times, shadow_every=shadow_every, reserve=reserve)
        self._backlog = Backlog(stages, self.times)
        self._history = History.empty(capacity, stages)
        self._probabilities = np.zeros((capacity, backend.classes), dtype=np.float32)
        self._stream = np.zeros(capacity, dtype=bool)
        self._flying: deque[_Flight] = deque()
        self._landed = 0.0  # when the last batch did, or when the loop found work after it had none
        self._failures = 0

    def receive(self, message: Inbound) -> None:
        """Take one message in."""
        if isinstance(message, Submit):
            try:
                slots = self._admit(message.pixels)
            except Exception as error:
                self._fail(np.array([message.request]), error)
                self._count_failure(error)
                return
            self._stream[slots] = message.terms.stream
            if self.idle:
                self._landed = time.monotonic()
            self.scheduler.add(slots, message.request, message.terms, message.arrival)
        elif isinstance(message, Cancel):
            slots = self.scheduler.cancel(message.request)
            self.backend.release(slots)
            self._send(Cancelled("queue", len(slots)))

    def _admit(self, pixels: NDArray[np.uint8]) -> Slots:
        """Cancelled tickets keep their slots while their batch is in flight: whoever took their places waits for it."""
        while True:
            try:
                return self.backend.admit(pixels)
            except DeviceError:
                if not self._flying:
                    raise
                self._land(self._flying.popleft())

    def load(self, leaving: Batch | None = None) -> Load:
        """What waits now, and what is left to do for those aboard; `leaving` is a batch about to be launched."""
        waiting, backlog = self.scheduler.waiting(), self._backlog
        aboard = [flight.batch for flight in self._flying]
        if leaving is not None:
            aboard.append(leaving)
        return Load(
            tuple(waiting),
            tuple(self.scheduler.oldest_since()),
            backlog_seconds=backlog.seconds(waiting)
            + sum(batch.seconds + backlog.later(batch.stage, len(batch.slots)) for batch in aboard),
            seconds_per_image=backlog.an_image()[0],
            work_seconds=backlog.work_seconds,
            prediction_margin=self.times.margin,
        )

    @property
    def idle(self) -> bool:
        """Whether nothing runs and there is nothing to run, not even a shadow."""
        return not self._flying and self.scheduler.idle()

    @property
    def busy(self) -> bool:
        """Whether anybody may wait for an answer."""
        return bool(self._flying) or any(self.scheduler.waiting())

    def run_once(self) -> None:
        """Launch what the device has room for, then wait for the oldest batch and settle it, if there is one."""
        while len(self._flying) < self.backend.in_flight and self._launch():
            pass
        if self._flying:
            self._land(self._flying.popleft())
        if self.idle:
            self._publish(self.load())

    def _launch(self) -> bool:
        """Start one batch, and let go who cannot wait for it → whether there was one."""
        now = time.monotonic()
        starts = max(now, self._flying[-1].ends) if self._flying else now
        self._give_up(self.scheduler.overdue(now, starts))
        batch = self.scheduler.next_batch(now, starts)
        if batch is None:
            return False
        self._give_up(self.scheduler.overdue(now, starts + batch.seconds))
        self._publish(self.load(batch))  # now: on a CPU it is over when it has been launched
        try:
            handle = self.backend.launch(batch.stage, batch.slots)
        except Exception as error:
            self._abandon(batch, error)
            return False
        self._flying.append(_Flight(batch, handle, now, starts + batch.seconds))
        return True

    def _land(self, flight: _Flight) -> None:
        batch = flight.batch
        try:
            output = self.backend.collect(flight.handle)
        except Exception as error:
            self._abandon(batch, error)
            return
        self._failures = 0
        now = time.monotonic()
        seconds = now - max(self._landed, flight.launched)
        # From the end of the one before: what the host does between two batches is part of what a batch takes.
        self.times.learn(batch.stage, len(batch.slots), now - self._landed)
        self._landed = now
        self._send(Ran(batch.stage, len(batch.slots), seconds))
        self._remember(batch, output, seconds)
        self._settle(batch, output, now)

    def _abandon(self, batch: Batch, error: Exception) -> None:
        requests, slots = self.scheduler.abandon(batch)
        self.backend.release(slots)
        self._fail(requests, error)
        self._count_failure(error)

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise DeviceError(f"the device failed {self._failures} times in a row") from error

    def _give_up(self, overdue: Overdue) -> None:
        if len(overdue.slots):
            whose = self.scheduler.tickets.request[overdue.slots]
            self._answer(overdue.slots, whose, overdue.exits, overdue.reasons)
            self.backend.release(overdue.slots)

    def _remember(self, batch: Batch, output: StageOutput, seconds: float) -> None:
        said, best = History.empty(len(batch.slots), 1), output.probabilities.argmax(axis=1)
        said.score[:, 0] = output.score
        said.confidence[:, 0] = output.probabilities[np.arange(len(best)), best]
        said.queue_seconds[:, 0], said.compute_seconds[:, 0] = batch.waited, seconds
        said.class_id[:, 0], said.batch_size[:, 0] = best, len(best)
        self._history.measured[batch.slots, batch.stage] = said.measured[:, 0]
        self._history.counted[batch.slots, batch.stage] = said.counted[:, 0]
        self._probabilities[batch.slots] = output.probabilities

    def _settle(self, batch: Batch, output: StageOutput, now: float) -> None:
        # Before tickets become shadows, which are nobody's.
        whose = self.scheduler.tickets.request.take(batch.slots)
        settled = self.scheduler.settle(batch, output.score, now)
        if not batch.shadows:
            self._backlog.ran(batch.stage, len(batch.slots), settled.onward)
            self._tell(batch, whose, settled)
        self._check_shadows(batch, settled)
        if settled.cancelled:
            self._send(Cancelled("batch", settled.cancelled))
        self.backend.release(settled.free)

    def _tell(self, batch: Batch, whose: NDArray[np.int64], settled: Settled) -> None:
        """Streams hear of every exit, the others of their last."""
        rows, reasons = settled.left, settled.reasons
        streams = self._stream.take(batch.slots)
        if streams.any():
            every = np.full(len(batch.slots), GOES_ON)
            every[settled.left] = settled.reasons
            streams[settled.left] = True
            rows = streams.nonzero()[0]
            reasons = every[rows]
        if len(rows):
            self._answer(batch.slots[rows], whose[rows], np.full(len(rows), batch.stage + 1), reasons)

    def _answer(
        self, slots: Slots, requests: NDArray[np.int64], exits: NDArray[np.int64], reasons: NDArray[np.int8]
    ) -> None:
        self._send(
            Answers(
                request=requests,
                index=self.scheduler.tickets.index[slots],
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
