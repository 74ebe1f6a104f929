"""Images on their way to a device's slots: a ring of places in the host's memory.

Requests come one by one while the device works through what is queued; only the launch of a batch sends what has come.
So the host waits for the device only where images fill the whole ring.
"""

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msmlp.model.backends.protocol import Slots
from msmlp.model.backends.torch.devices import Driver, Event


class Arrivals:
    """A ring of `places` images.

    Images are counted from the first that ever came: place = number modulo places. Those up to `_gone` have left the
    ring, those up to `_sent` are queued on the device, those up to `_added` are in the ring.
    """

    def __init__(self, driver: Driver, slab: Tensor, places: int) -> None:
        """Make the buffers; `slab` [capacity + 1, size, size, 3] is where images go, its last row is nobody's."""
        self._driver, self._slab, self._places = driver, slab, places
        self._pixels = driver.host(places, *slab.shape[1:], dtype=torch.uint8)
        self._rows = driver.host(places, dtype=torch.int64)
        # On the device too, so that serving allocates nothing there.
        self._device_pixels = torch.zeros_like(self._pixels, device=driver.device)
        self._device_rows = torch.zeros_like(self._rows, device=driver.device)
        self._latest = np.zeros(len(slab), dtype=np.int64)
        self._gone = self._sent = self._added = 0
        self._marks: deque[tuple[int, Event]] = deque()
        self._spare: list[Event] = []

    def add(self, pixels: NDArray[np.uint8], slots: Slots) -> None:
        """Copy images [n, size, size, 3] for `slots` [n] into the ring; waits where it has no room for them."""
        while len(slots):
            first = self._added % self._places
            count = min(len(slots), self._room_for(len(slots)), self._places - first)
            self._pixels.numpy()[first : first + count] = pixels[:count]
            self._rows.numpy()[first : first + count] = slots[:count]
            self._added += count
            pixels, slots = pixels[count:], slots[count:]

    def flush(self) -> None:
        """Queue all that was added, ahead of what is queued next. What fails to go stays, and goes with the next."""
        if self._sent == self._added:
            return
        first, count = self._sent % self._places, self._added - self._sent
        self._send(first, min(first + count, self._places))
        if first + count > self._places:
            self._send(0, first + count - self._places)
        mark = self._spare.pop() if self._spare else self._driver.event()
        mark.record()
        self._marks.append((self._added, mark))
        self._sent = self._added

    def _send(self, first: int, last: int) -> None:
        rows, places = self._rows.numpy()[first:last], np.arange(first, last)
        # A slot may have been given back unused and taken again, and an order among equal rows is not promised.
        self._latest[rows] = places
        rows[self._latest[rows] != places] = len(self._slab) - 1
        for here, there in ((self._pixels, self._device_pixels), (self._rows, self._device_rows)):
            there[first:last].copy_(here[first:last], non_blocking=True)
        self._slab.index_copy_(0, self._device_rows[first:last], self._device_pixels[first:last])

    def _room_for(self, images: int) -> int:
        """Free places: enough for `images`, or all."""
        wanted = min(images, self._places)
        while self._places - (self._added - self._gone) < wanted:
            if not self._marks:
                self.flush()
            number, mark = self._marks[0]
            mark.synchronize()
            self._marks.popleft()
            self._spare.append(mark)
            self._gone = number
        return self._places - (self._added - self._gone)
