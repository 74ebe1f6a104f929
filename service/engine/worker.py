"""The engine as a thread of this process."""

import queue
import threading
from contextlib import suppress
from dataclasses import replace

from msmlp.service.engine.messages import Died, Inbound, Load, Outbound, Ready, Submit
from msmlp.service.engine.seam import BackendFactory, Send, Underway, run


class Worker:
    """Runs `build()` and everything after it on a thread of its own: the device belongs to that thread.

    `send` is called on that thread. For `capacity` and `shadow_every` see `seam.run`.
    """

    def __init__(self, build: BackendFactory, send: Send, *, capacity: int | None, shadow_every: int = 0) -> None:
        self._send = send
        self._inbox: queue.SimpleQueue[Inbound] = queue.SimpleQueue()
        self._underway = Underway()
        self._submits = self._images = 0  # that the engine has taken in
        self._thread = threading.Thread(
            target=run,
            args=(build, self),
            kwargs={"capacity": capacity, "shadow_every": shadow_every},
            name="msmlp-engine",
            daemon=True,
        )
        self.ready = threading.Event()
        self._published: tuple[Load, int, int] | None = None

    def start(self) -> None:
        """Begin building and warming the backend; `ready` says when it is done."""
        self._thread.start()

    def put(self, message: Inbound) -> None:
        """Hand the engine a message; never blocks. One thread calls."""
        if isinstance(message, Submit):
            self._underway.put(message)
        self._inbox.put(message)

    @property
    def load(self) -> Load | None:
        """What waits, the inbox included; None while the engine is not ready."""
        published = self._published
        return self._underway.joined(*published) if published and self.ready.is_set() else None

    def join(self, timeout: float | None = None) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)

    # The engine's end (seam.Port), called on its thread.

    def take(self, *, block: bool) -> list[Inbound]:
        """What has come; with `block` wait for it."""
        messages = [self._inbox.get()] if block else []
        with suppress(queue.Empty):
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def taken(self, message: Inbound) -> None:
        """Counted, for what is published next."""
        if isinstance(message, Submit):
            self._submits += 1
            self._images += len(message.pixels)

    def send(self, messages: list[Outbound]) -> None:
        """Hand messages over. A thread's death is for good: its device is this process's."""
        last = messages[-1]
        if isinstance(last, Died):
            self.ready.clear()
            messages = [*messages[:-1], replace(last, restarting=False)]
        self._send(messages)
        if isinstance(last, Ready):
            self.ready.set()  # now that the façade hears of it before whoever waits for this

    def publish(self, load: Load) -> None:
        """For other threads: replaced, never changed."""
        self._published = load, self._submits, self._images
