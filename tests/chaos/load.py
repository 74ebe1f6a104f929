"""A small steady load of pictures whose answers are known, and what became of each request."""

import http.client
import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

import msmlp
from tests.fakes import PATIENCE_SECONDS, picture
from tests.servers import encoded, wait_until

BOUNDED = os.environ.get("HYPOTHESIS_PROFILE") == "chaos"
"""`make chaos`: times are bounded too."""

LIMIT_SECONDS = 30.0 if BOUNDED else PATIENCE_SECONDS
"""A request that takes longer hangs."""

THRESHOLDS = [0.9, 0.8]
"""Of three stages; brown-out never changes what is asked for."""
QUERY = "?thresholds=0.9,0.8&top_k=1"
REFUSALS = 429, 503


@dataclass(frozen=True)
class Known:
    """A picture as a file, and its answer offline."""

    file: bytes
    class_id: int
    exit: int
    confidence: float

    def differs(self, result: dict[str, Any]) -> bool:
        same = (result["class_id"], result["exit"]) == (self.class_id, self.exit)
        return not same or abs(result["confidence"] - self.confidence) > 1e-3


def known_of(weights: Path, pictures: Sequence[NDArray[np.uint8]], *files: bytes) -> list[Known]:
    """What `weights` say offline; pictures too close to a threshold are left out: a batch rounds otherwise than one."""
    found = []
    with msmlp.load(weights, device="cpu", backend="onnx") as model:
        for file in [*(encoded(each) for each in pictures), *files]:
            result = model.classify(file, top_k=1, thresholds=THRESHOLDS).results[0]
            clear = all(abs(stage.score - at) > 1e-3 for stage, at in zip(result.stages, THRESHOLDS, strict=False))
            if clear:
                assert result.class_id is not None
                assert result.exit is not None
                assert result.confidence is not None
                found.append(Known(file, result.class_id, result.exit, result.confidence))
    return found


def known_to_fakes() -> list[Known]:
    """For the backends of `tests.fakes`, of 32 pixels."""
    scores = {1: (1.0, 0.0, 0.0), 3: (0.0, 0.0, 1.0)}
    return [
        Known(encoded(picture(*scores[exit], label=label, size=32)), label, exit, 1.0)
        for label in range(10)
        for exit in scores
    ]


class Load:
    """`clients` connections that are kept, each with the next picture as soon as it was answered, and a pause.

    `outcomes` counts statuses, and `unconnected`, `lost` (no byte of an answer came) and `cut` (not all of them did).
    `faults` says in words what must never be.
    """

    def __init__(self, url: str, known: Sequence[Known], *, clients: int = 3, pause: float = 0.02) -> None:
        self._url, self._known, self._pause = urlsplit(url), known, pause
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.seconds: list[float] = []
        self._over = threading.Event()
        self._numbers = itertools.count()
        self._threads = [threading.Thread(target=self._ask_on, name=f"chaos-load-{n}") for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int, outcome: str = "200") -> None:
        """Until so many more ended in this way."""
        enough = self.outcomes[outcome] + more
        wait_until(lambda: self.outcomes[outcome] >= enough or bool(self.faults))

    def check(self, *allowed: str) -> None:
        """Nothing wrong, nothing dishonest, nothing hung; and no other outcomes than 200, 429 and those."""
        assert not self.faults, self.faults[:5]
        assert set(self.outcomes) <= {"200", "429", *allowed}, self.outcomes

    def _ask_on(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._over.wait(self._pause):
            if connection is None:
                connection = self._connect()
            elif not self._ask(connection):
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection | None:
        connection = http.client.HTTPConnection(self._url.hostname or "", self._url.port, timeout=LIMIT_SECONDS)
        try:
            connection.connect()
        except OSError:
            self.outcomes["unconnected"] += 1
            return None
        return connection

    def _ask(self, connection: http.client.HTTPConnection) -> bool:
        """Whether the connection may be kept."""
        number = next(self._numbers)
        asked, request_id = self._known[number % len(self._known)], f"chaos-{number}"
        headers = {"Content-Type": "application/octet-stream", "X-Request-ID": request_id}
        began, outcome = time.monotonic(), "lost"
        try:
            connection.request("POST", f"/classify{QUERY}", asked.file, headers)
            response = connection.getresponse()
            outcome = "cut"
            content = response.read()
        except TimeoutError:
            self.faults.append(f"{request_id} hangs: no answer in {LIMIT_SECONDS:g} s")
            return False
        except (OSError, http.client.HTTPException):
            self.outcomes[outcome] += 1
            return False
        self.seconds.append(time.monotonic() - began)
        if fault := _fault(asked, response, content, request_id):
            self.faults.append(f"{request_id} after {self.seconds[-1]:.1f} s: {fault}")
        self.outcomes[str(response.status)] += 1
        return not response.will_close


def _fault(asked: Known, response: http.client.HTTPResponse, content: bytes, request_id: str) -> str:
    """What an answer should not be; empty if it is right."""
    if response.headers["X-Request-ID"] != request_id:
        return f"its id is {response.headers['X-Request-ID']}"
    if response.status == 200:
        result = json.loads(content)["results"][0]
        return f"{result} is wrong, expected {asked.class_id} at {asked.exit}" if asked.differs(result) else ""
    honest = (
        response.status in REFUSALS
        and response.headers["Content-Type"] == "application/problem+json"
        and int(response.headers["Retry-After"] or 0) > 0
        and json.loads(content)["request_id"] == request_id
    )
    return "" if honest else f"{response.status} {content[:200]!r} is no honest refusal"
