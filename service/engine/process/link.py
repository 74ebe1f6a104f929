"""One child from start to end, and what crosses to it and back."""

import select
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from msmlp.model.errors import DeviceError
from msmlp.service.engine.messages import Inbound, Load, Outbound, Submit
from msmlp.service.engine.process.child import HANG_SECONDS, main
from msmlp.service.engine.process.wire import SharedMemory, SharedSubmit, pack, unpack
from msmlp.service.engine.transport import BackendFactory, InTransit
from msmlp.service.logs import in_force

FRAME = 8
"""Messages a frame: it stays well under PIPE_BUF, so that a pipe with room takes it without blocking."""


@dataclass(frozen=True)
class ChildSpec:
    """What a child is started with; `build` crosses pickled.

    `places` is how many images can be on their way to it at once, and the most of one request; images are uint8
    [size, size, 3]. For `capacity` and `shadow_every` see `seam.run`, for `hang_seconds` `watchdog`.
    """

    build: BackendFactory
    capacity: int | None
    shadow_every: int
    stages: int
    size: int
    places: int
    hang_seconds: float = HANG_SECONDS


class ChildProcess:
    """`put` and `load` are for one thread, `receive` and `close` for another."""

    def __init__(self, child: ChildSpec) -> None:
        context = get_context("spawn")
        self._memory = SharedMemory(places=child.places, size=child.size, stages=child.stages)
        inbound, self._to = context.Pipe(duplex=False)
        self._from, outbound = context.Pipe(duplex=False)
        self._process = context.Process(
            target=main,
            args=(
                *(child.build, self._memory, inbound, outbound),
                *(child.capacity, child.shadow_every, child.hang_seconds, in_force()),
            ),
            name="msmlp-engine",
            daemon=True,
        )
        self._process.start()
        # Only the child holds these now: when it ends, `receive` sees it.
        inbound.close()
        outbound.close()
        self._poll = select.poll()
        self._poll.register(self._to.fileno(), select.POLLOUT)
        self._lock = threading.Lock()
        self._outbox: deque[Inbound] = deque()
        self._next_place, self._free = 0, child.places
        self._aboard: deque[int] = deque()  # images of each submit whose places are in use, oldest first
        self._returned = 0  # submits whose places are free again
        self._underway = InTransit()

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid

    def put(self, message: Inbound) -> None:
        """Send a message, or keep it until there is room: never blocks. DeviceError when there never will be."""
        if isinstance(message, Submit):
            if len(message.pixels) > self._memory.places:
                raise DeviceError(f"{len(message.pixels)} images in a request, places for {self._memory.places}")
            self._underway.put(message)
        with self._lock:
            self._outbox.append(message)
            self._flush()

    @property
    def load(self) -> Load:
        """What waits in the child and on its way there."""
        return self._underway.joined(*self._memory.published())

    def receive(self) -> list[Outbound] | None:
        """What the child says next, None when it has ended."""
        try:
            taken, messages = unpack(self._from.recv_bytes())
        except (EOFError, OSError):
            return None
        with self._lock:
            while self._returned < taken:
                self._free += self._aboard.popleft()
                self._returned += 1
            self._flush()
        heard: list[Outbound] = messages
        return heard

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()

    def close(self) -> int:
        """Wait for the child's end, which has begun → its exit status, negative for a signal."""
        self._process.join()
        status = self._process.exitcode
        with self._lock:
            self._to.close()
            self._outbox.clear()
        self._from.close()
        self._process.close()
        return status or 0

    def _flush(self) -> None:
        """Send while the pipe and the places have room. Whatever is kept goes when the child has next said something:
        it always does after it has taken something in.
        """
        with suppress(OSError):  # the child has ended, as `receive` will find
            while self._outbox and self._poll.poll(0):
                frame: list[Any] = []
                while self._outbox and len(frame) < FRAME and (packed := self._placed(self._outbox[0])) is not None:
                    frame.append(packed)
                    self._outbox.popleft()
                if not frame:
                    return
                self._to.send_bytes(pack(frame))

    def _placed(self, message: Inbound) -> Any:
        """What crosses instead of a message; None when it must wait for places."""
        if not isinstance(message, Submit):
            return message
        start, images = self._next_place, len(message.pixels)
        if images > self._free:
            return None
        self._memory.write(start, message.pixels)
        self._next_place = (start + images) % self._memory.places
        self._free -= images
        self._aboard.append(images)
        return SharedSubmit(message.request, start, images, message.terms, message.arrival)
