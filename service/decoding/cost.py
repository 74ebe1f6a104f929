"""What decoding will take, learned from what it took. Pure: no clock."""

KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF", "pixels")
"""Formats, and pixels that are only resized."""

PER_PICTURE = 50e-6
"""Seconds that any picture takes, however small, until that is known."""
LARGE = 1e-3
"""Seconds of pixels above which a picture tells what a pixel takes, and below which what a picture takes beside them:
thumbnails would make every pixel look dear."""
START = dict(zip(KINDS, (20e-9, 25e-9, 25e-9, 8e-9, 10e-9, 35e-9, 5e-9), strict=True))
"""Seconds per pixel of work, from photographs on one core of an AMD EPYC, until this machine's are known."""
MEMORY = 30e6
"""Pixels of work after which a third of what was learned before still counts."""
NEWEST = 0.01
"""Weight of the newest small picture."""
OUTLIER = 10.0
"""A picture is not believed to have taken longer than this many times its prediction: its thread was held up."""


class DecodeTimes:
    """Seconds per picture, from its kind and its work in pixels."""

    def __init__(self) -> None:
        self._per_picture, self._per_pixel = PER_PICTURE, dict(START)

    def predict(self, kind: str, work: float) -> float:
        return self._per_picture + self._per_pixel[kind] * work

    def learn(self, kind: str, work: float, seconds: float) -> None:
        """A picture took `seconds`. Large ones say more than small ones."""
        took, pixels = min(seconds, OUTLIER * self.predict(kind, work)), self._per_pixel[kind] * work
        if pixels < LARGE:
            self._per_picture += NEWEST * (max(0.0, took - pixels) - self._per_picture)
            return
        took -= self._per_picture
        self._per_pixel[kind] = (self._per_pixel[kind] * MEMORY + max(0.0, took)) / (MEMORY + work)
