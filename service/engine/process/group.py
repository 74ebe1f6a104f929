"""Several engines, one per device, as one Worker: each request goes to the one where it would wait the least."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from msmlp.service.engine.messages import Cancel, Counts, Died, Inbound, Load, Outbound, Ready, Submit
from msmlp.service.engine.process.host import EngineHosts, State
from msmlp.service.engine.process.remote import GONE, RemoteWorker
from msmlp.service.engine.transport import Send


class EngineGroup:
    """Is ready while one of its engines is, and dies with the last of them.

    `connect` makes them, each with its own `send`.
    """

    def __init__(self, connect: Sequence[Callable[[Send], RemoteWorker]], send: Send) -> None:
        self._send = send
        self._workers = [each(partial(self._hear, number)) for number, each in enumerate(connect)]
        self._ready: dict[int, Ready] = {}  # of the engines that are up
        self._died: dict[int, Died] = {}  # of those that have died for good
        self._worked, self._seen = 0.0, dict[RemoteWorker, float]()
        self.ready = threading.Event()
        self.cpu_seconds: dict[int, float] = {}

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    @property
    def pids(self) -> Sequence[int]:
        """Only who hosts the engines knows their processes."""
        return ()

    @property
    def restarts(self) -> int:
        return sum(worker.restarts for worker in self._workers)

    @property
    def states(self) -> list[State]:
        return [worker.state for worker in self._workers]

    @property
    def load(self) -> Load | None:
        """All that waits; the wait ahead and the pace are those that a new image would meet."""
        living = self._living()
        if not living:
            return None
        for worker, load in living:
            before = self._seen.get(worker, 0.0)
            # One that has begun anew counts from 0, and the sum never falls.
            since = load.work_seconds - before if load.work_seconds >= before else load.work_seconds
            self._worked += since / len(self._workers)
            self._seen[worker] = load.work_seconds
        return _joined([load for _, load in living], self._worked)

    def put(self, message: Inbound) -> None:
        if isinstance(message, Submit):
            worker = self._least_busy(len(message.pixels))
            if worker is not None:
                worker.put(message)
        else:
            for worker in self._workers:
                if not isinstance(message, Cancel) or message.request in worker.inside:
                    worker.put(message)

    def look(self, now: float) -> float:
        ages = [(worker.look(now), worker.ready.is_set()) for worker in self._workers]
        # An engine that is down holds no images; its age must not make us give up those of the others.
        return max((age for age, up in ages if up), default=max(age for age, _ in ages))

    def share(self, counts: Counts) -> None:
        for worker in self._workers:
            worker.share(counts)

    def join(self, timeout: float | None = None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        for worker in self._workers:
            worker.join(None if until is None else max(0.0, until - time.monotonic()))

    def _living(self) -> list[tuple[RemoteWorker, Load]]:
        return [(worker, load) for worker in self._workers if (load := worker.load) is not None]

    def _least_busy(self, images: int) -> RemoteWorker | None:
        """The engine with the smallest predicted backlog, of those that have room if there are such."""

        def wait(living: tuple[RemoteWorker, Load]) -> tuple[bool, float, int]:
            worker, load = living
            wait = load.backlog_seconds + images * load.seconds_per_image
            return worker.images + images > worker.permits, wait, worker.images

        if len(self._workers) == 1:
            return self._workers[0]
        living = self._living()
        return min(living, key=wait)[0] if living else None

    def _hear(self, number: int, messages: list[Outbound]) -> None:
        heard: list[Outbound] = []
        for message in messages:
            if isinstance(message, Ready):
                self._ready[number] = message
                heard.append(self._all_ready())
            elif isinstance(message, Died):
                heard += self._one_died(number, message)
            else:
                heard.append(message)
        if heard:
            self._say(heard)
        if self._ready:
            self.ready.set()
        else:
            self.ready.clear()

    def _say(self, messages: list[Outbound]) -> None:
        self._send(messages)

    def _all_ready(self) -> Ready:
        """What the engines that are up are together."""
        one = next(iter(self._ready.values()))
        silence = max(ready.silence for ready in self._ready.values())
        return Ready(one.backend, one.device, sum(ready.permits for ready in self._ready.values()), silence)

    def _one_died(self, number: int, died: Died) -> list[Outbound]:
        """An engine's end → what is to be said of all of them."""
        was_up = self._ready.pop(number, None) is not None
        if not died.restarting:
            self._died[number] = died
        if self._ready:
            return [self._all_ready()]  # with fewer permits
        if len(self._died) == len(self._workers):
            return [died]
        return [Died(died.detail, restarting=True)] if was_up else []


class ProcessWorker(EngineGroup):
    """Engines that this process hosts itself, as their only front end; `connect(address, send)` makes a worker."""

    def __init__(self, hosts: EngineHosts, connect: Callable[..., RemoteWorker], send: Send) -> None:
        self.hosts = hosts
        super().__init__([partial(connect, address) for address in hosts.addresses], send)

    def start(self) -> None:
        self.hosts.start()
        super().start()

    @property
    def pids(self) -> Sequence[int]:
        return self.hosts.pids

    @property
    def restarts(self) -> int:
        return self.hosts.restarts

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end that `Stop` asked for; engines that take longer than `timeout` are killed."""
        until = None if timeout is None else time.monotonic() + timeout
        super().join(timeout)
        self.hosts.stop()
        self.hosts.join(None if until is None else max(0.0, until - time.monotonic()))

    def _say(self, messages: list[Outbound]) -> None:
        last = messages[-1]
        if isinstance(last, Died) and not last.restarting:
            self.hosts.stop()
            if last == GONE and self.hosts.lost:
                messages = [*messages[:-1], Died(self.hosts.lost)]
        super()._say(messages)


def _joined(loads: Sequence[Load], worked: float) -> Load:
    """The engines' loads as one; they have `worked` that long, as a mean over all."""
    first = loads[0]
    if len(loads) == 1 and first.work_seconds == worked:
        return first
    paces = [load.seconds_per_image for load in loads]
    return Load(
        tuple(map(sum, zip(*(load.queued for load in loads), strict=True))),
        tuple(map(min, zip(*(load.oldest for load in loads), strict=True))),
        backlog_seconds=min(load.backlog_seconds for load in loads),
        seconds_per_image=1 / sum(1 / pace for pace in paces) if all(paces) else 0.0,
        work_seconds=worked,
        prediction_margin=max(load.prediction_margin for load in loads),
        submits=sum(load.submits for load in loads),
        images=sum(load.images for load in loads),
        others=first.others,  # every front end shows all of its counts to every engine
    )
