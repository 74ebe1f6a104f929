"""How much device time what waits will take. Pure."""

from msmlp.service.engine.times import StageTimes

MEMORY = 1000
"""Images after which a share of survivors is forgotten: the mix of images and thresholds changes with the clients."""


class Backlog:
    """Of a cascade of `stages`, from the shares that went on of late and the device's best times (`times.best`)."""

    def __init__(self, stages: int, times: StageTimes) -> None:
        self._times = times
        self._survive = [1.0] * stages  # before anything is known, everything goes to the end
        self._survive[-1] = 0.0
        self.work_seconds = 0.0

    def ran(self, stage: int, images: int, onward: int) -> None:
        """A batch of `images` has run, of which `onward` go on."""
        self.work_seconds += images * self._times.best[stage]
        weight = images / (images + MEMORY)
        self._survive[stage] += weight * (onward / images - self._survive[stage])

    def an_image(self) -> list[float]:
        """Device seconds that an image before each stage still needs, [K]."""
        needs, later = [], 0.0
        for best, survive in zip(reversed(self._times.best), reversed(self._survive), strict=True):
            later = best + survive * later
            needs.append(later)
        return needs[::-1]

    def later(self, stage: int, images: int) -> float:
        """Device seconds that `images` aboard a batch of `stage` need after it."""
        return images * (self.an_image()[stage] - self._times.best[stage])

    def seconds(self, waiting: list[int]) -> float:
        """Device seconds that `waiting` [K] images need."""
        return sum(images * needs for images, needs in zip(waiting, self.an_image(), strict=True))
