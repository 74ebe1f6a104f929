"""The engine's inside: one thread that owns the backend, runs what the scheduler says, and sends what came of it."""

import logging
import queue
import threading
import time
from collections.abc import Callable

import numpy as np

from model.backends.protocol import StageBackend, StageOutput, warm_up
from model.errors import DeviceError, MsmlpError
from service.engine.messages import Answers, Cancel, Died, Failed, History, Inbound, Outbound, Ran, Ready, Stop, Submit
from service.engine.scheduler import Batch, Scheduler

log = logging.getLogger("msmlp.engine")

MAX_FAILURES = 3
"""So many failed batches in a row mean a broken device: the worker ends, and with it a server that seems healthy."""

BackendFactory = Callable[[], StageBackend]


class Worker:
    """Runs `build()` and everything after it on a thread of its own: the device belongs to that thread.

    `send` is called on that thread with every outbound message and must not block.
    """

    def __init__(self, build: BackendFactory, send: Callable[[Outbound], None]) -> None:
        self._build, self._send = build, send
        self._inbox: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="msmlp-engine", daemon=True)
        self.ready = threading.Event()
        self.queued = np.zeros(0, dtype=np.int64)
        self.oldest = np.zeros(0)

    def start(self) -> None:
        """Begin building and warming the backend; `ready` says when it is done."""
        self._thread.start()

    def put(self, message: Inbound) -> None:
        """Hand the engine a message; never blocks."""
        self._inbox.put(message)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    def _main(self) -> None:
        detail = "stopped"
        try:
            backend = self._build()
            warm_up(backend)
            loop = Loop(backend, self._send)
            self._publish(loop.scheduler)
            log.info("ready: %s on %s, batches up to %d", backend.name, backend.device, backend.buckets[-1])
            self._send(Ready(backend.name, backend.device))
            self.ready.set()
            self._serve(loop)
        except MsmlpError as error:
            detail = str(error)
            log.error("engine stopped: %s", detail)
        except Exception:
            detail = "engine failed"
            log.exception("engine stopped")
        finally:
            self.ready.clear()
            self._send(Died(detail))

    def _serve(self, loop: "Loop") -> None:
        stopping = False
        while True:
            busy = loop.scheduler.waiting().any()
            if stopping and not busy and self._inbox.empty():
                return
            for message in self._drain(block=not busy):
                stopping |= isinstance(message, Stop)
                loop.receive(message)
            loop.run_once()
            self._publish(loop.scheduler)

    def _drain(self, *, block: bool) -> list[Inbound]:
        messages = [self._inbox.get()] if block else []
        while True:
            try:
                messages.append(self._inbox.get_nowait())
            except queue.Empty:
                return messages

    def _publish(self, scheduler: Scheduler) -> None:
        """For the gauges: arrays are replaced, never changed, so other threads may read them."""
        self.queued, self.oldest = scheduler.waiting(), scheduler.oldest_since()


class Loop:
    """Backend and scheduler together, and the columns that only answers need."""

    def __init__(self, backend: StageBackend, send: Callable[[Outbound], None]) -> None:
        self.backend, self._send = backend, send
        self.scheduler = Scheduler(backend.capacity, backend.stages, backend.buckets[-1])
        self._history = History.empty(backend.capacity, backend.stages)
        self._failures = 0

    def receive(self, message: Inbound) -> None:
        """Take one message in."""
        if isinstance(message, Submit):
            try:
                slots = self.backend.admit(message.pixels)
            except Exception as error:
                self._fail(np.array([message.request]), error)
                return
            self.scheduler.add(
                slots, message.request, message.thresholds, message.min_exit, message.max_exit, message.arrival
            )
        elif isinstance(message, Cancel):
            self.backend.release(self.scheduler.cancel(message.request))

    def run_once(self) -> None:
        """Run one batch, if anything waits."""
        start = time.monotonic()
        batch = self.scheduler.next_batch(start)
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
        self._send(Ran(batch.stage, len(batch.slots), end - start))
        self._remember(batch, output, end - start)
        self._answer(batch, output, end)

    def _remember(self, batch: Batch, output: StageOutput, seconds: float) -> None:
        at, history = (batch.slots, batch.stage), self._history
        history.score[at] = output.score
        history.confidence[at] = output.probabilities.max(axis=1)
        history.class_id[at] = output.probabilities.argmax(axis=1)
        history.queue_seconds[at] = batch.waited
        history.compute_seconds[at] = seconds
        history.batch_size[at] = len(batch.slots)

    def _answer(self, batch: Batch, output: StageOutput, now: float) -> None:
        settled = self.scheduler.settle(batch, output.score, now)
        slots = batch.slots[settled.left]
        if len(slots):
            self._send(
                Answers(
                    request=self.scheduler.request[slots],
                    index=self.scheduler.index[slots],
                    exit=np.full(len(slots), batch.stage + 1),
                    reason=settled.reasons,
                    probabilities=output.probabilities[settled.left],
                    history=self._history.take(slots),
                )
            )
        self.backend.release(np.concatenate([slots, settled.cancelled]))

    def _fail(self, requests: np.ndarray[tuple[int], np.dtype[np.int64]], error: Exception) -> None:
        log.error("a batch failed", exc_info=error)
        self._send(Failed(requests, f"the device failed ({type(error).__name__})"))
