"""What decoding will take, learned from what it took. Pure: no clock."""

KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "pixels")
"""Formats, and pixels that are only resized."""

PER_PICTURE = 50e-6
"""Seconds that any picture takes, however small."""
START = dict(zip(KINDS, (20e-9, 25e-9, 25e-9, 8e-9, 10e-9, 5e-9), strict=True))
"""Seconds per pixel of work, from photographs on one core of an AMD EPYC, until this machine's are known."""
MEMORY = 30e6
"""Pixels of work after which a third of what was learned before still counts."""
OUTLIER = 10.0
"""A picture is not believed to have taken longer than this many times its prediction: its thread was held up."""


class DecodeTimes:
    """Seconds per picture, from its kind and its work in pixels."""

    def __init__(self) -> None:
        self._per_pixel = dict(START)

    def predict(self, kind: str, work: float) -> float:
        return PER_PICTURE + self._per_pixel[kind] * work

    def learn(self, kind: str, work: float, seconds: float) -> None:
        """A picture took so long. Large ones say more than small ones."""
        took = min(seconds, OUTLIER * self.predict(kind, work)) - PER_PICTURE
        self._per_pixel[kind] = (self._per_pixel[kind] * MEMORY + max(0.0, took)) / (MEMORY + work)
