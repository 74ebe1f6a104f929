"""Refusing before a body is read: what is in work by the bytes of bodies, how fast it is done, and when to come back.

Pure: the time is a parameter. Admission knows images and device time only once a body was read and parsed, and by then
much of a refused request's cost is spent. The door knows bytes, and learns how much of the event loop's thread a byte
takes: reading, parsing and answering, and the stages where they run on that thread. Decoder threads do not count: a few
bytes may decode for long, and others need not wait for them.
"""

import math

from msmlp.service.errors import OverloadedError

REQUEST_BYTES = 2**10
"""What a request costs beside its body counts as this many bytes of body."""
MOST_BYTES = 2**18
"""A body counts at most this: of a large one, decoding and the engine know more once it was read. Without a limit one
body of 64 MB among thumbnails would shut the door for all."""
RUSH = 0.2
"""Seconds for which what was learnt before always counts: the first of a rush see little of it done."""
SMALL_BYTES = 2**16
"""A body up to this size has mostly come with its head, and is not looked at a second time."""
MEMORY = 2.0
"""Seconds of a busy loop over which the pace is averaged."""
BUSY = 0.5
"""Only a loop that is busy for more than this share of the time shows its pace: an idle one does more than it must."""
EASE = 0.8
"""What is left at the next look of the lag, and of the wait that is predicted while the loop is not busy."""
RETRY_SECONDS = 1, 60
"""The shortest and the longest Retry-After of a refusal."""
SLACK = 0.05
"""The share of the longest wait that the device works off before bodies are read again, only to be refused."""
FITS, LEAST = 0.9, 0.1
"""Those who come back may take what others leave of the first share of the time, and at least the second."""
SPREAD = 7
"""Seconds between the times told to two clients for whom there is no room within the longest: all at once would be as
bad as now. It has no common factor with 30, so all times of the later half come in turn."""
SMOOTHING = 2.0
"""Seconds over which the load of others is averaged."""


class Door:
    """`work` is the bytes of whole bodies that are not answered yet; above `most` it takes longer than `max_wait`.

    The device may have too much to do as well: until `shut`, in seconds of Admission's clock. `lag` is how late the
    event loop has been lately, in seconds: what waits in sockets, unseen, waits at least that long.
    """

    def __init__(self, max_wait: float) -> None:
        self.max_wait, self.most, self.shut = max_wait, math.inf, -math.inf
        self.work = self.lag = self._refused = 0.0
        self._done = 0.0  # bytes since the last look
        self._busy = self._bytes = 0.0  # seconds, and the bytes done in them
        self._ease = EASE
        self._looked, self._cpu = -math.inf, 0.0

    def enter(self, size: int) -> float:
        """A body has come as a whole → its work, which stays until it leaves."""
        work = REQUEST_BYTES + min(size, MOST_BYTES)
        self.work += work
        return work

    def closed(self, now: float) -> bool:
        """Whether a request that comes now is to be refused. With nothing in work, any is let in."""
        return self.work > self.most or (now < self.shut and self.work > 0)

    def full(self, now: float, wait: float, seconds: float) -> None:
        """The device would take `wait` seconds for what it has: refuse before reading until it has done a little. A
        request of `seconds` was refused."""
        self.shut, self._refused = max(self.shut, now + wait - (1 - SLACK) * self.max_wait), seconds

    def reopen(self, wait: float) -> None:
        """The device would take only `wait` seconds now: it did more than predicted, or clients have left."""
        if wait <= (1 - SLACK) * self.max_wait:
            self.shut = -math.inf

    def leave(self, work: float) -> None:
        self.work -= work
        self._done += work

    @property
    def pace(self) -> float:
        """Seconds that a byte took when the loop was last busy; 0 before it ever was."""
        return self._busy / self._bytes if self._bytes else 0.0

    @property
    def wait(self) -> float:
        """Predicted seconds until all work is done, and the lag in front of it."""
        return self.work * self.pace * self._ease + self.lag

    def seconds(self, size: int) -> float:
        """What a body of `size` bytes would take; while the device is full, as much as the one that found it so."""
        loop = (REQUEST_BYTES + min(size, MOST_BYTES)) * self.pace
        return max(loop, self._refused) if self.shut > -math.inf else loop

    def look(self, now: float, cpu: float, late: float) -> float:
        """Learn from the time since the last look → the share of it in which the loop was busy.

        `cpu` is the CPU time of its thread so far, `late` by how much this look comes too late. Seconds.
        """
        passed, spent = now - self._looked, cpu - self._cpu
        self._looked, self._cpu = now, cpu
        done, self._done = self._done, 0.0
        self.lag = max(late, EASE * self.lag)
        if not 0 < passed < math.inf:
            return 0.0
        busy = min(passed, spent)
        if busy <= BUSY * passed or not done:
            # More would have been done, had it come: no bad moment may shut the door for long.
            self._ease *= EASE
            fade = max(EASE, min(1.0, RUSH / self._busy)) if self._busy else 1.0
            self._busy, self._bytes = fade * self._busy, fade * self._bytes
        elif self._ease < 1 and self._bytes:  # a rush begins: most of what it brought has not left yet
            self._ease = 1.0
        else:
            keep, self._ease = math.exp(-passed / MEMORY), 1.0
            self._busy, self._bytes = keep * self._busy + busy, keep * self._bytes + done
        pace = self.pace * self._ease
        self.most = max(0.0, self.max_wait - self.lag) / pace if pace and self.max_wait else math.inf
        return busy / passed


class Bookings:
    """Tells refused clients times at which there will be room for their work, different ones when they are many.

    A client told a time is booked into the slot in which it will come back. A slot holds as many seconds of work as the
    service can do in it beside the load of others, and no more than it would admit at once: those who were refused
    together come back together.
    """

    def __init__(self, max_wait: float) -> None:
        self._width = min(1.0, max(0.02, max_wait / 2)) if max_wait else 0.5
        self._booked: dict[int, float] = {}
        self._hint = self._looked = -math.inf
        self._refused = self._others = 0.0  # seconds of work, and a share of the time
        self._spread = 0

    def book(self, now: float, wait: float, seconds: float) -> int:
        """Retry-After of a request of `seconds` that would be admitted after `wait` seconds, were it alone."""
        shortest, longest = RETRY_SECONDS
        self._refused += seconds
        room = self._width * max(LEAST, FITS - self._others)
        # From where room was found last: all before is full.
        first = max(shortest, math.ceil(min(longest, max(wait, self._hint - now - 1e-9))))
        for after in range(first, longest + 1):
            slot = int((now + after) / self._width)
            if self._booked.get(slot, 0.0) + min(seconds, room) <= room:
                self._fill(slot, room, seconds)
                self._hint = now + after
                return after
        self._spread = (self._spread + SPREAD) % (longest // 2)
        return longest - self._spread

    def _fill(self, slot: int, room: float, seconds: float) -> None:
        last = slot + int(RETRY_SECONDS[1] / self._width)
        while seconds > 0 and slot <= last:
            taken = min(seconds, room - self._booked.get(slot, 0.0))
            if taken > 0:
                self._booked[slot] = self._booked.get(slot, 0.0) + taken
                seconds -= taken
            slot += 1

    def look(self, now: float, busy: float) -> None:
        """Forget slots that are over. `busy` is the share of the time since the last look with work that was let in."""
        passed = now - self._looked
        if passed == math.inf:
            self._looked, self._refused = now, 0.0
            return
        if passed <= 0:
            return
        over = range(int(self._looked / self._width), int(now / self._width))
        due = sum(self._booked.pop(slot, 0.0) for slot in over) if self._booked else 0.0
        # Who came without a booking: all who came, less those who were to come. One flood says little of what follows.
        others = min(1.0, max(0.0, busy + (self._refused - due) / passed))
        self._others += (1 - math.exp(-passed / SMOOTHING)) * (others - self._others)
        self._looked, self._hint, self._refused = now, -math.inf, 0.0


def turned_away(door: Door, bookings: Bookings, size: int, now: float) -> OverloadedError:
    """The refusal of a request whose body of `size` bytes was not read."""
    # While the device is why, it needs until `shut` before what it has takes no longer than the limit.
    wait, seconds = max(door.wait, door.max_wait + door.shut - now), door.seconds(size)
    detail = f"the predicted wait is {1e3 * wait:.0f} ms, the limit {1e3 * door.max_wait:.0f} ms"
    return OverloadedError(detail, bookings.book(now, wait - door.max_wait, seconds), "door")
