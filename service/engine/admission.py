"""Admission: a limit on images in flight and a limit on the predicted wait. Pure: no clock."""

from collections.abc import Callable
from operator import add
from typing import Self

from msmlp.service.engine.door import Bookings, Door, turned_away
from msmlp.service.engine.messages import Counts, Load
from msmlp.service.errors import OverloadedError


class Permits:
    """The permits of one request's images. Each returns when its image leaves the engine, the rest with the block."""

    def __init__(self, admission: "Admission", images: int) -> None:
        self._admission, self._held = admission, images

    def leave(self, images: int) -> None:
        """Images have left the engine, answered or not."""
        self._admission.inside -= images
        self._release(images)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._release(self._held)

    def _release(self, images: int) -> None:
        self._held -= images
        self._admission.release(images)


class Admission:
    """Counts permits: an image holds one from admission to its answer, first while it is decoded, then in the engine.

    `max_wait` is the longest predicted time to an answer, in seconds, at which images are admitted (0: no limit).
    `permits` is how many there are, 0 until the engine is ready; `inflight` how many are held, `inside` how many of
    those by images in the engine. `admitted` and `degraded` count all images since the start, and those of them that
    brown-out moved to a cheaper operating point. `met`: a request has found others in flight. The `door` refuses before
    a body is read; `bookings` say when the refused may come back, `decoding` when those whose pictures would take too
    long: what the decoders have to do is not what the device has to do.

    Front ends that use one engine share its permits: each passes its numbers to `share_with`, and finds those of the
    others in the engine's load.
    """

    def __init__(self, max_wait: float) -> None:
        self.max_wait = max_wait
        self.permits = self.inflight = self.inside = 0
        self.admitted = self.degraded = 0
        self.met = False
        self.share_with: Callable[[Counts], None] | None = None
        self.door, self.bookings = Door(max_wait), Bookings(max_wait)
        self.decoding = Bookings(max_wait)

    def look(self, now: float, cpu: float, late: float) -> None:
        """Call it at intervals, with the CPU seconds of the event loop's thread so far and how late the call is."""
        self.bookings.look(now, self.door.look(now, cpu, late))

    def turn_away(self, size: int, now: float) -> OverloadedError:
        """The refusal of a request whose body of `size` bytes was not read; the door is closed."""
        return turned_away(self.door, self.bookings, size, now)

    def admit(self, images: int, load: Load, now: float = 0.0, *, degraded: bool = False) -> Permits:
        """Take permits; OverloadedError says when to retry. With nothing in flight, any wait is admitted."""
        pace, inflight = load.seconds_per_image, int(self.inflight + load.others.inflight)
        if inflight:
            self.met = True
        missing = inflight + images - self.permits
        if missing > 0:
            detail = f"the service is full: {inflight} of {self.permits} images in flight, {images} more requested"
            raise OverloadedError(detail, self.bookings.book(now, missing * pace, images * pace), "capacity")
        wait = self.wait(load)
        predicted = wait + images * pace
        if inflight and 0 < self.max_wait < predicted:
            self.door.full(now, wait, images * pace)
            retry = self.bookings.book(now, predicted - self.max_wait, images * pace)
            raise OverloadedError(self._too_long(predicted), retry, "wait")
        self.admitted += images
        self.degraded += images * degraded
        self.release(-images)
        return Permits(self, images)

    def check_decoding(self, images: int, load: Load, seconds: float, own: float) -> None:
        """Refuse admitted images whose decoding is predicted to end in `seconds`, if that makes them wait too long.

        `own` are the seconds that the decoders need for them. The OverloadedError is for `book_decoding`. Alone in
        flight, they may take any time. On any thread: it changes nothing.
        """
        predicted = self.backlog(load) + seconds
        if self.inflight + load.others.inflight > images and 0 < self.max_wait < predicted:
            error = OverloadedError(self._too_long(predicted), reason="wait")
            error.unbooked = predicted - self.max_wait, own
            raise error

    def book_decoding(self, error: OverloadedError, now: float) -> None:
        """Give a refusal by `check_decoding` its Retry-After; on the event loop."""
        if error.unbooked is not None:
            error.retry_after = self.decoding.book(now, *error.unbooked)

    def _too_long(self, predicted: float) -> str:
        return f"the predicted wait is {1e3 * predicted:.0f} ms, the limit {1e3 * self.max_wait:.0f} ms"

    def release(self, images: int) -> None:
        """Permits return."""
        self.inflight -= images
        if self.share_with is not None:
            self.share_with(self._own())

    def _own(self) -> Counts:
        return Counts(self.inflight, self.inside, self.admitted, self.degraded)

    def total(self, load: Load) -> Counts:
        """The counts of all front ends."""
        return Counts(*map(add, self._own(), load.others))

    def backlog(self, load: Load) -> float:
        """Predicted seconds of device time until all images in flight are answered, undecoded ones included."""
        outside = self.inflight - self.inside + load.others.inflight - load.others.inside
        return load.backlog_seconds + max(0, outside) * load.seconds_per_image

    def wait(self, load: Load) -> float:
        """Predicted seconds until all that is in work is answered, whatever holds it up: the device or this process."""
        return max(self.backlog(load) + self.door.lag, self.door.wait)

    def share(self, load: Load) -> float:
        """The share of permits held by images in the engine; brown-out makes nothing decode faster."""
        return (self.inside + load.others.inside) / self.permits if self.permits else 0.0
