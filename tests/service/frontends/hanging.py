"""`serve` over a backend whose stage can be made to hang, or to give scores that are not numbers, by a picture:
python hanging.py WEIGHTS FRONTENDS ENGINE [silence=SECONDS] [setting=value ...].

`silence` is what is called a hang, in place of the product's own.
"""

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msmlp.model.backends.protocol import StageOutput
from msmlp.model.backends.select import Selection
from msmlp.service.engine import core
from msmlp.service.engine.heartbeat import longest_silence
from msmlp.service.frontends import place
from msmlp.service.http.server import serve
from msmlp.service.service import build_service
from msmlp.service.settings import Settings
from tests.fakes import FakeBackend

HANGS, INVALID, SLOW, BREAKS, RAISES = 201, 202, 203, 204, 205
"""Labels of pictures at which a stage never returns, gives no valid score, takes `SLOW_SECONDS`, after which no picture
has a valid score, and at which a stage raises what nobody expects."""

SLOW_SECONDS = 1.5


class Hanging(FakeBackend):
    broken = False

    def collect(self, handle: Any) -> StageOutput:
        labels = self._pixels[handle.slots, 1, 0, 1]
        self._pixels[handle.slots[labels > self.classes], ..., 1] = 0  # a further stage finds nothing of it
        if (labels == HANGS).any():
            time.sleep(1e6)
        if (labels == RAISES).any():
            raise ZeroDivisionError("a secret of the device")
        if (labels == SLOW).any():
            time.sleep(SLOW_SECONDS)
        output = super().collect(handle)
        self.broken |= bool((labels == BREAKS).any())
        return StageOutput(_spoilt(output.score, (labels == INVALID) | self.broken), output.probabilities)


def _spoilt(scores: NDArray[np.float32], which: NDArray[np.bool_]) -> NDArray[np.float32]:
    scores[which] = np.nan
    return scores


def build() -> Hanging:
    return Hanging(stages=3, classes=10, size=32, capacity=64)


def select(*_: Any) -> Selection:
    return Selection("hanging", "cpu", "", build)


if __name__ in ("__main__", "__mp_main__"):  # a process of the service, and not a test
    more = dict(word.split("=") for word in sys.argv[4:])
    if silence := float(more.pop("silence", 0)):
        place.ALONE_LOOKS = round(silence / place.LOOK_SECONDS)
        core.longest_silence = lambda longest_batch, least: longest_silence(longest_batch, silence)

if __name__ == "__main__":
    from msmlp.main import _fail
    from msmlp.model.errors import MsmlpError

    try:
        settings = Settings(
            weights=Path(sys.argv[1]), port=0, device="cpu", frontends=sys.argv[2], engine=sys.argv[3], **more
        )
        serve(settings, partial(build_service, select=select))
    except MsmlpError as error:
        sys.exit(_fail(1, str(error)))
