"""A device that does what it was asked as late as it may: when the host waits for a mark that comes after it."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from msmlp.model.backends.torch.devices import Driver, Event, Step

QUEUED = ("copy_", "index_copy_")


class LateDriver(Driver):
    """A CPU whose copies between buffers and whose stages wait in a queue, inside `working`.

    `waits` counts how often the host had to wait. `fault` may raise when something is asked for.
    """

    in_flight = 2

    def __init__(self) -> None:
        super().__init__()
        self.queue: deque[Callable[[], object]] = deque()
        self.queued = self.done = self.waits = 0
        self.at_work = False
        self.fault: Callable[[str], None] = lambda what: None

    def ask(self, what: str, work: Callable[[], object]) -> None:
        self.fault(what)
        self.queue.append(work)
        self.queued += 1

    def work_until(self, number: int) -> None:
        self.at_work = True
        try:
            with torch.inference_mode():
                while self.done < number:
                    self.queue.popleft()()
                    self.done += 1
        finally:
            self.at_work = False

    def event(self) -> Event:
        return _Mark(self)

    def replaying(self, step: Step) -> Step:
        return lambda stage, bucket: self.ask("stage", lambda: step(stage, bucket))

    @contextmanager
    def working(self) -> Iterator[None]:
        """What is asked of the device in here is done late; at the end all of it is done."""
        with _Queueing(self):
            yield
        self.work_until(self.queued)


class _Mark:
    def __init__(self, driver: LateDriver) -> None:
        self.driver, self.number = driver, 0

    def record(self) -> None:
        self.driver.fault("record")
        self.number = self.driver.queued

    def synchronize(self) -> None:
        if self.number > self.driver.done:
            self.driver.waits += 1
            self.driver.work_until(self.number)


class _Queueing(TorchDispatchMode):
    """Puts operations that write into a buffer in the queue, unless the device itself is at work.

    Rows are written from the last to the first: no order is promised, and a CPU's own is the convenient one.
    """

    def __init__(self, driver: LateDriver) -> None:
        super().__init__()
        self.driver = driver

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if self.driver.at_work or name not in QUEUED:
            return func(*args, **(kwargs or {}))
        into: Tensor = args[0]
        if name == "index_copy_":
            self.driver.ask(name, lambda: func(into, args[1], args[2].flip(0), args[3].flip(0)))
        else:
            self.driver.ask(name, lambda: func(*args, **(kwargs or {})))
        return into
