"""What stages have answered for the tickets in a core. Pure."""

import math

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageOutput
from msmlp.service.engine.messages import HISTORY, History
from msmlp.service.engine.scheduler import Batch
from msmlp.service.engine.tickets import Slots


class Answered:
    """The history [K] and the newest probabilities of the ticket in every slot.

    Batches are often small, and the time goes into calls of numpy: views and indices are made once, and whole rows
    move as single items, which takes a third of the time of indexing rows.
    """

    def __init__(self, capacity: int, stages: int, classes: int, largest: int) -> None:
        """`largest` is the most images of a batch."""
        self.probabilities = np.zeros((capacity, classes), dtype=np.float32)
        self._whole = np.dtype((np.void, classes * 4))  # the probabilities of an image
        history = np.zeros((capacity, stages), dtype=HISTORY)
        self._cells, self._numbers = history.reshape(-1), history.view(np.float32)
        self._cell = np.arange(capacity * stages).reshape(capacity, stages).T.copy()  # by stage and slot
        self._starts = np.arange(largest) * classes
        self._rows = np.zeros(largest, dtype=HISTORY)
        self._columns = [self._rows[name] for name in HISTORY.names or ()]

    def record(self, batch: Batch, output: StageOutput, seconds: float) -> bool:
        """Take in what a batch gave → whether all scores and confidences are numbers; else `valid` says which."""
        count, best = len(batch.slots), output.probabilities.argmax(axis=1)
        score, confidence, queue_seconds, compute_seconds, class_id, batch_size = self._columns
        score[:count] = output.score
        confidence[:count] = likely = output.probabilities.take(best + self._starts[:count])
        queue_seconds[:count], compute_seconds[:count] = batch.waited, seconds
        class_id[:count], batch_size[:count] = best, count
        self._cells.put(self._cell[batch.stage].take(batch.slots), self._rows[:count])
        probabilities = np.ascontiguousarray(output.probabilities, dtype=np.float32)
        self.probabilities.view(self._whole).put(batch.slots, probabilities.view(self._whole))
        # One that is not a number, or is infinite, makes the sum of products so.
        return math.isfinite(np.dot(output.score, likely))

    def valid(self, count: int) -> NDArray[np.bool_]:
        """Of each of the `count` images of the last batch."""
        score, confidence = self._columns[:2]
        finite: NDArray[np.bool_] = np.isfinite(score[:count]) & np.isfinite(confidence[:count])
        return finite

    def history_of(self, slots: Slots) -> History:
        """A copy, [n, K]."""
        return self._numbers.take(slots, axis=0).view(HISTORY)
