"""Whose turn it is among the stages, deadlines apart. Pure."""

from msmlp.service.engine.times import StageTimes

PATIENCE = 16
"""Batches that a stage with waiting tickets lets go before it. Less, and thin batches go while others are full."""

ALIKE = 0.1
"""Batches whose worth differs by less than this are alike."""


class Turns:
    """Counts how often each of `stages` stages has been passed over."""

    def __init__(self, stages: int, times: StageTimes, patience: int = PATIENCE) -> None:
        self._times = times
        # With everything waiting, round and round is the best there is.
        self.patience = max(patience, stages - 1)
        self._passed_over = [0] * stages

    def impatient(self, waiting: list[int]) -> int | None:
        """The stage that has been passed over too often, or must go now lest another one is; None if there is none."""
        if max(self._passed_over) + len(waiting) <= self.patience:
            return None
        stages = sorted((k for k, waits in enumerate(waiting) if waits), key=lambda k: -self._passed_over[k])
        # Run one after the other from now on, each would have been passed over so often by then.
        if any(self._passed_over[k] + turn >= self.patience for turn, k in enumerate(stages)):
            return stages[0]
        return None

    def worthiest(self, waiting: list[int]) -> int:
        """The deepest stage with a full batch; else the one that wastes the least, the deeper where they are alike."""
        for stage in reversed(range(len(waiting))):
            if waiting[stage] >= self._times.full(stage):
                return stage
        worth = [self._times.worth(k, waits) if waits else -1.0 for k, waits in enumerate(waiting)]
        most = max(worth)
        return max(k for k, each in enumerate(worth) if each >= most - ALIKE and waiting[k])

    def taken(self, stage: int, waiting: list[int]) -> None:
        """`stage` goes; the others that wait are passed over."""
        for k, waits in enumerate(waiting):
            self._passed_over[k] = self._passed_over[k] + 1 if waits and k != stage else 0
