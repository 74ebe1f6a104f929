"""Signs of life, which others look for: a thread or process that hangs cannot say so itself. Pure: no clock."""

BEAT_SECONDS = 0.25
"""How often an engine without work gives a sign of life. One with work does so around every batch."""

SILENCE_SECONDS = 5.0
"""The least silence that is called a hang."""

BATCHES = 10
"""A hang is also longer than this many of the longest batches: a slow engine that works must not be ended."""

LOOK_SECONDS = 0.1
"""How often somebody looks. A look counts for at most twice as long: if all were frozen (a paused container, a machine
that was moved), so was the one who looks, and nobody hangs."""


def longest_silence(longest_batch: float, least: float = SILENCE_SECONDS) -> float:
    """Seconds of silence that count as a hang, for an engine whose longest batch takes `longest_batch` seconds."""
    return max(least, BATCHES * longest_batch)


class Heartbeat:
    """One that is looked at. `age` is for how many seconds no new beat was seen; 0 before the first."""

    def __init__(self) -> None:
        self._beat, self._looked, self.age = 0.0, 0.0, 0.0

    def look(self, beat: float, now: float) -> float:
        """`beat` changes with every sign of life, and is 0 before the first, or where nobody is seen → the age."""
        if beat and beat != self._beat:
            self._beat, self.age = beat, 0.0
        elif self._beat:
            self.age += min(now - self._looked, 2 * LOOK_SECONDS)
        self._looked = now
        return self.age
