"""The engine core: backend and scheduler together. Batches go out, answers come in and leave as messages.

`Engine` runs it, a turn at a time; `run` is its life on a thread of its own. `Port` is what it needs of its other side.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageBackend, StageOutput, black, warm_up
from msmlp.model.errors import CallerError, DeviceError, MsmlpError
from msmlp.model.exits.rule import GOES_ON
from msmlp.service.engine.answered import Answered
from msmlp.service.engine.heartbeat import SILENCE_SECONDS, longest_silence
from msmlp.service.engine.latency import LatencyModel, LoadEstimate
from msmlp.service.engine.messages import (
    Answers,
    Cancel,
    Cancelled,
    CancelRange,
    Died,
    Failed,
    Inbound,
    Invalid,
    Load,
    Outbound,
    Ran,
    Ready,
    Shadowed,
    Stop,
    Submit,
)
from msmlp.service.engine.scheduler import Batch, Scheduler, Settled
from msmlp.service.engine.tickets import Slots

log = logging.getLogger("msmlp.engine")

BackendFactory = Callable[[], StageBackend]
Warm = tuple[StageBackend, NDArray[np.float64]]
"""A backend, and the seconds of its batches, [K, buckets]."""

MAX_FAILURES = 3
"""Failures without a successful batch between them that mean a broken device. The worker then ends, so that the server
does not seem healthy. Images that cannot be stored count too: with a poisoned context, nothing else may be tried."""

FULL = "the service is full"

SHADOW_SLOTS = 32
"""Slots on the device beyond the permits, so that shadows never take one from a request."""


class Port(Protocol):
    """The core's end of the transport. Only the thread that owns the device calls."""

    def send(self, messages: list[Outbound]) -> None: ...

    def publish(self, load: Load) -> None: ...


class BlockingPort(Port, Protocol):
    def take(self, *, block: bool) -> list[Inbound]:
        """The messages that have come, in order; with `block`, at least one.

        Their pixels stay valid until the next call of any method of this port.
        """


def run(
    build: BackendFactory,
    port: BlockingPort,
    *,
    permits: int | None,
    shadow_every: int,
    silence: float = SILENCE_SECONDS,
) -> None:
    """The core's life on a thread of its own: build, warm up, and serve until `Stop` or an error; Died is the last
    message. See `Engine` for the arguments.
    """
    engine = Engine(port, permits=permits, shadow_every=shadow_every, silence=silence)
    try:
        engine.begin(*warmed(build))
        _serve(engine, port)
    except Exception as error:
        engine.end(error)
    else:
        engine.end()


def _serve(engine: "Engine", port: BlockingPort) -> None:
    stopping = False
    while True:
        messages = port.take(block=engine.core.idle and not stopping)
        if stopping and not messages and not engine.core.busy:
            return
        stopping |= any(isinstance(message, Stop) for message in messages)
        engine.turn(messages)


def warmed(build: BackendFactory, most: float = np.inf) -> Warm:
    """A backend, ready to serve; of buckets that take more than `most` seconds only the smallest of all is kept."""
    backend = build()
    seconds = warm_up(backend, most)
    kept = max(1, int(np.count_nonzero(seconds.max(axis=0) <= most)))
    if (longest := seconds[:, 0].max()) > most:
        told = "one image takes %.0f ms in a stage, and holds the event loop up for as long; at most %.0f ms are meant"
        log.warning(f"{told}: serve with --engine process", 1e3 * longest, 1e3 * most)
    backend.buckets = backend.buckets[:kept]
    return backend, seconds[:, :kept]


class Engine:
    """A core and its port.

    The callers keep at most `permits` images in flight. The backend's other slots are for shadows: one of
    `shadow_every` confident exits. Without `permits` there are as many as slots, less SHADOW_SLOTS. A port on the
    core's own thread asks for the load when it wants it: the engine `publishes` none. `silence` is the least that is
    called a hang.
    """

    core: "EngineCore"

    def __init__(
        self,
        port: Port,
        *,
        permits: int | None,
        shadow_every: int,
        publishes: bool = True,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self._port, self._permits, self._shadow_every = port, permits, shadow_every
        self._publishes, self._silence = publishes, silence
        self._outbox = list[Outbound]()

    def begin(self, backend: StageBackend, seconds: NDArray[np.float64]) -> None:
        """Be ready with a warm backend."""
        permits, shadow_every = self._permits, self._shadow_every
        if permits is None:
            permits = backend.capacity - (SHADOW_SLOTS if shadow_every else 0)
        reserve = max(0, backend.capacity - permits)
        self.core = EngineCore(
            backend,
            self._outbox.append,
            seconds=seconds,
            shadow_every=shadow_every,
            reserve=reserve,
            publish=self._publish if self._publishes else None,
        )
        if self._publishes:
            self._port.publish(self.core.load())
        silence = longest_silence(float(seconds.max()), self._silence)
        self._port.send([Ready(backend.name, backend.device, backend.capacity - reserve, silence)])
        log.info("ready: %s on %s, batches up to %d", backend.name, backend.device, backend.buckets[-1])

    def turn(self, messages: list[Inbound]) -> None:
        """Take in messages, run a batch, and send what came of both."""
        for message in messages:
            self.core.receive(message)
        self.core.run_once()
        self._flush()

    def end(self, error: Exception | None = None) -> None:
        """Send what was not sent, and Died: the engine has stopped, by itself or of `error`."""
        died = Died("stopped")
        if isinstance(error, MsmlpError):
            # A restart does not help where the caller must change something.
            died = Died(str(error), restarting=not isinstance(error, CallerError))
            log.error("engine stopped: %s", died.detail)
        elif error is not None:
            died = Died("engine failed", restarting=True)
            log.error("engine stopped", exc_info=error)
        self._port.send([*self._outbox, died])

    def _publish(self, load: Load) -> None:
        self._port.publish(load)
        self._flush()  # expired images are answered before the next batch runs

    def _flush(self) -> None:
        # Do not wake the other side for a batch's duration alone.
        for message in self._outbox:
            if not isinstance(message, Ran):
                self._port.send(self._outbox.copy())
                self._outbox.clear()
                return


class _InFlight(NamedTuple):
    """A batch on the device: when it was launched and when it should end (monotonic seconds)."""

    batch: Batch
    handle: Any
    launched: float
    ends: float


class EngineCore:
    """Runs batches, as many at a time as the backend takes, and keeps the columns that only answers need.

    `shadow_every` and `reserve` are the scheduler's; `seconds` [K, buckets] is what warm-up measured; `publish` gets
    the load before every batch and when nothing is left to run. `clock` gives seconds; a simulation has its own.
    """

    def __init__(
        self,
        backend: StageBackend,
        send: Callable[[Outbound], None],
        *,
        seconds: NDArray[np.float64],
        shadow_every: int = 0,
        reserve: int = 0,
        publish: Callable[[Load], None] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.backend, self._send, self._publish, self._clock = backend, send, publish, clock or time.monotonic
        self._stages = stages = backend.stages
        self.latency = LatencyModel(backend.buckets, seconds)
        self.scheduler = Scheduler(backend.capacity, stages, self.latency, shadow_every=shadow_every, reserve=reserve)
        self._estimate = LoadEstimate(stages, self.latency)
        self._answered = Answered(backend.capacity, stages, backend.classes, backend.buckets[-1])
        self._stream = np.zeros(backend.capacity, dtype=bool)
        self._exits = np.arange(1, stages + 1).repeat(backend.capacity).reshape(stages, -1)
        self._exits.setflags(write=False)  # parts of it leave in answers
        self._in_flight: deque[_InFlight] = deque()
        self._collected = 0.0  # when the last batch was, or when work arrived after there was none
        self._failures, self._told_invalid, self._doubtful = 0, False, False
        self._submits = self._images = 0

    def receive(self, message: Inbound) -> None:
        if isinstance(message, Submit):
            self._submit(message)
        elif isinstance(message, Cancel):
            self._withdrawn(self.scheduler.cancel(message.request))
        elif isinstance(message, CancelRange):
            self._withdrawn(self.scheduler.cancel_range(message.first, message.last))

    def _withdrawn(self, slots: Slots) -> None:
        self.backend.release(slots)
        self._send(Cancelled("queue", len(slots)))

    def _submit(self, message: Submit) -> None:
        self._submits += 1
        self._images += len(message.pixels)
        try:
            slots = self._admit(message.pixels)
        except Exception as error:
            images = len(message.pixels)
            if self.scheduler.free < images:  # front ends that share an engine may together admit too many
                self._send(Failed(np.array([message.request]), FULL, shed=images))
            else:
                self._fail(np.array([message.request]), error)
            return
        self._stream[slots] = message.parameters.stream
        if self.idle:
            self._collected = self._clock()
        self.scheduler.add(slots, message.request, message.parameters, message.arrival)

    def _admit(self, pixels: NDArray[np.uint8]) -> Slots:
        """Store images; without a free slot, after a batch: cancelled tickets keep theirs until their batch ends."""
        while True:
            try:
                return self.backend.admit(pixels)
            except DeviceError:
                if not self._in_flight:
                    raise
                self._collect(self._in_flight.popleft())

    def load(self, leaving: Batch | None = None) -> Load:
        """What waits now and the work still to do; `leaving` is a batch about to be launched."""
        waiting, estimate = self.scheduler.waiting(), self._estimate
        running = [each.batch for each in self._in_flight]
        if leaving is not None:
            running.append(leaving)
        return Load(
            tuple(waiting),
            tuple(self.scheduler.oldest_since()),
            backlog_seconds=estimate.seconds(waiting)
            + sum(batch.seconds + estimate.later(batch.stage, len(batch.slots)) for batch in running),
            seconds_per_image=estimate.per_image()[0],
            work_seconds=estimate.work_seconds,
            prediction_margin=self.latency.margin,
            submits=self._submits,
            images=self._images,
        )

    @property
    def idle(self) -> bool:
        """Whether nothing runs and there is nothing to run, not even a shadow."""
        return not self._in_flight and self.scheduler.idle()

    @property
    def busy(self) -> bool:
        """Whether a request may wait for an answer."""
        return bool(self._in_flight) or any(self.scheduler.waiting())

    def run_once(self) -> None:
        """Launch batches while the device has room, then wait for the oldest and settle it."""
        while len(self._in_flight) < self.backend.in_flight and self._launch():
            pass
        if self._in_flight:
            self._collect(self._in_flight.popleft())
        if self._doubtful:
            while self._in_flight:
                self._collect(self._in_flight.popleft())
            self._check_device()
        if self._publish and self.idle:
            self._publish(self.load())

    def _launch(self) -> bool:
        """Start one batch, and answer tickets whose deadline does not allow for it → whether there was one."""
        now = self._clock()
        starts = max(now, self._in_flight[-1].ends) if self._in_flight else now
        self._answer_overdue(now, starts)
        batch = self.scheduler.next_batch(now, starts)
        if batch is None:
            return False
        self._answer_overdue(now, starts + batch.seconds)
        if self._publish:
            self._publish(self.load(batch))  # before the launch: on a CPU that is when the batch runs
        try:
            handle = self.backend.launch(batch.stage, batch.slots)
        except Exception as error:
            self._abandon(batch, error)
            return False
        self._in_flight.append(_InFlight(batch, handle, now, starts + batch.seconds))
        return True

    def _collect(self, flight: _InFlight) -> None:
        batch = flight.batch
        try:
            output = self.backend.collect(flight.handle)
        except Exception as error:
            self._abandon(batch, error)
            return
        now = self._clock()
        seconds = now - max(self._collected, flight.launched)
        # Measured from the end of the previous batch: the host's work between batches counts too.
        self.latency.learn(batch.stage, len(batch.slots), now - self._collected)
        self._collected = now
        self._send(Ran(batch.stage, len(batch.slots), seconds))
        if self._answered.record(batch, output, seconds):
            self._failures = 0
            self._settle(batch, output, now)
        else:
            self._settle_valid(batch, output, now)

    def _settle_valid(self, batch: Batch, output: StageOutput, now: float) -> None:
        """Fail the images whose score or confidence is not a number, with their requests, and settle the others."""
        valid = self._answered.valid(len(batch.slots))
        bad, good = (~valid).nonzero()[0], valid.nonzero()[0]
        requests, slots = self.scheduler.abandon(batch._replace(slots=batch.slots[bad]))
        self.backend.release(slots)
        self._send(Failed(requests, "the device gave no valid scores"))
        self._send(Invalid(len(bad)))
        if not self._told_invalid:
            self._told_invalid = True
            counts = batch.stage + 1, len(bad), len(valid)
            log.error("stage %d gave %d of %d images scores that are not numbers", *counts)
        if len(good):
            some = StageOutput(output.score[good], output.probabilities[good])
            self._settle(batch._replace(slots=batch.slots[good], waited=batch.waited[good]), some, now)
        self._failures += 1
        self._doubtful |= self._failures >= MAX_FAILURES

    def _check_device(self) -> None:
        """End the engine if a black image has no valid scores either. Some images may overflow a graph: whoever sends
        them must not be able to end it.
        """
        slots = self.backend.admit(black(self.backend, 1))
        for stage in range(self._stages):
            output = self.backend.collect(self.backend.launch(stage, slots))
            if not (np.isfinite(output.score).all() and np.isfinite(output.probabilities).all()):
                raise DeviceError(f"stage {stage + 1} gives no valid scores, not even for a black image")
        self.backend.release(slots)
        self._failures, self._doubtful, self._collected = 0, False, self._clock()

    def _abandon(self, batch: Batch, error: Exception) -> None:
        requests, slots = self.scheduler.abandon(batch)
        self.backend.release(slots)
        self._fail(requests, error)

    def _answer_overdue(self, now: float, free: float) -> None:
        if not self.scheduler.tickets.timed:
            return
        overdue = self.scheduler.overdue(now, free)
        if len(overdue.slots):
            requests = self.scheduler.tickets.request[overdue.slots]
            self._answer(overdue.slots, requests, overdue.exits, overdue.reasons)
            self.backend.release(overdue.slots)

    def _settle(self, batch: Batch, output: StageOutput, now: float) -> None:
        # Read first: settling turns some tickets into shadows, which belong to no request.
        requests = self.scheduler.tickets.request.take(batch.slots)
        settled = self.scheduler.settle(batch, output.score, now)
        if not batch.shadows:
            self._estimate.ran(batch.stage, len(batch.slots), settled.onward)
            self._report(batch, requests, settled)
        self._check_shadows(batch, settled)
        if settled.cancelled:
            self._send(Cancelled("batch", settled.cancelled))
        if len(settled.free):
            self.backend.release(settled.free)

    def _report(self, batch: Batch, requests: NDArray[np.int64], settled: Settled) -> None:
        """Answer images: those of streams at every exit, the others at their last."""
        rows, reasons = settled.left, settled.reasons
        streams = self._stream.take(batch.slots)
        if np.count_nonzero(streams):
            every = np.full(len(batch.slots), GOES_ON)
            every[settled.left] = settled.reasons
            streams[settled.left] = True
            rows = streams.nonzero()[0]
            reasons = every[rows]
        if len(rows):
            slots = batch.slots
            if len(rows) < len(slots):
                slots, requests = slots.take(rows), requests.take(rows)
            self._answer(slots, requests, self._exits[batch.stage, : len(rows)], reasons)

    def _answer(
        self, slots: Slots, requests: NDArray[np.int64], exits: NDArray[np.int64], reasons: NDArray[np.int8]
    ) -> None:
        self._send(
            Answers(
                request=requests,
                index=self.scheduler.tickets.index.take(slots),
                exit=exits,
                reason=reasons,
                probabilities=self._answered.probabilities.take(slots, axis=0),
                history=self._answered.history_of(slots),
            )
        )

    def _check_shadows(self, batch: Batch, settled: Settled) -> None:
        if len(settled.checked):
            classes = self._answered.history_of(batch.slots[settled.checked])["class_id"]
            then = classes[np.arange(len(classes)), settled.left_at - 1]
            self._send(Shadowed(settled.left_at, then == classes[:, batch.stage]))

    def _fail(self, requests: NDArray[np.int64], error: Exception) -> None:
        log.error("a batch failed", exc_info=error)
        self._send(Failed(requests, f"the device failed ({type(error).__name__})"))
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise DeviceError(f"the device failed {self._failures} times in a row") from error
