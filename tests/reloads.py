"""For tests of reloads: weights whose answers differ, what each answers offline, and clients that keep their
connections and check every answer against it."""

import http.client
import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

import msmlp
from msmlp.model.nn.config import PRESETS
from tests.fakes import PATIENCE_SECONDS
from tests.processes import Served, msmlp_serve
from tests.servers import encoded, wait_until

KEY = "the-operators-own-key"
CODES = {"bad_weights", "insufficient_memory", "reload_failed", "reloading"}
"""Of errors that only /admin/reload has."""

PATH = "/classify?policy=accurate&degrade=false"


def train_two_stages(data: Path, out: Path) -> Path:
    """Weights with two exits, where `tiny_weights` have three."""
    from msmlp.model.training.trainer import TrainOptions, train

    stages = [stage.model_dump() for stage in PRESETS["tiny"].stages[1:]]
    changes = {"augment": "none", "erasing": 0, "mixup": 0, "cutmix": 0, "lr": 0.01, "ema": 0.9, "stages": stages}
    options = TrainOptions(data, preset="tiny", out=out, epochs=2, batch_size=60, device="cpu", seed=5, changes=changes)
    return train(options)


@dataclass
class Version:
    """A weights folder, and what it answers for each of some pictures."""

    folder: Path
    name: str
    exits: int
    answers: list[tuple[str, float, int]]

    @classmethod
    def of(cls, folder: Path, pictures: NDArray[np.uint8]) -> "Version":
        with msmlp.load(folder, device="cpu", max_batch=2) as model:
            answers = [model(picture, policy="accurate", top_k=1) for picture in pictures]
        first = answers[0]
        exits = first["results"][0]["exits"]
        return cls(folder, first["model"]["version"], exits, [_row(each) for each in answers])

    def agrees(self, picture: int, answer: dict[str, Any]) -> bool:
        label, confidence, exit = self.answers[picture]
        found = _row(answer)
        return (found[0], found[2]) == (label, exit) and abs(found[1] - confidence) < 1e-4


def _row(answer: Any) -> tuple[str, float, int]:
    result = answer["results"][0]
    return result["label"], result["confidence"], result["exit"]


def put(folder: Path, weights: Path) -> None:
    """Let the folder hold other weights: file by file, as a copying operator does."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(weights, folder)


@contextmanager
def reloadable(version: Version, where: Path, *options: str, frontends: int = 2) -> Iterator[Served]:
    """A service of a copy of the weights at `where` / "weights", which may be reloaded."""
    folder, keys = where / "weights", where / "keys"
    put(folder, version.folder)
    keys.write_text(KEY + "\n")
    each = ("--frontends", str(frontends), "--max-batch", "2", "--admin-keys-file", str(keys))
    with msmlp_serve(folder, *each, *options) as served:
        served.wait_until_ready(frontends)
        yield served


def reload(served: Served, key: str = KEY) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{served.url}/admin/reload", headers=headers, timeout=PATIENCE_SECONDS)


def hang_up(served: Served, outcome: str = "done") -> None:
    """Reload by a signal, and wait until it has ended so."""
    before = served.metric(f'msmlp_reloads_total{{outcome="{outcome}"}}')
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: served.metric(f'msmlp_reloads_total{{outcome="{outcome}"}}') == before + 1)


@dataclass
class Load:
    """Clients that ask one request after the other, each over one connection; `begun` and the version of each."""

    url: str
    pictures: list[bytes]
    versions: list[Version]
    faults: list[str] = field(default_factory=list)
    answered: list[tuple[float, str]] = field(default_factory=list)
    _enough: threading.Event = field(default_factory=threading.Event)

    def _ask_on(self, number: int) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_SECONDS)
        connection.connect()
        connection.auto_open = 0  # a closed connection is a fault
        try:
            for turn in range(number, 10**9):
                picture, begun = turn % len(self.pictures), time.monotonic()
                connection.request("POST", PATH, self.pictures[picture], {"Content-Type": "image/png"})
                response = connection.getresponse()
                content = response.read()
                self._check(picture, begun, response, content)
                if self._enough.is_set():
                    return
                time.sleep(0.003 * (number % 3))  # some are busy, some idle for a moment
        except (OSError, http.client.HTTPException) as error:
            self.faults.append(f"{type(error).__name__}: {error}")
        finally:
            connection.close()

    def _check(self, picture: int, begun: float, response: http.client.HTTPResponse, content: bytes) -> None:
        if response.status != 200 or response.getheader("Connection") == "close":
            self.faults.append(f"{response.status} {response.getheader('Connection')} {content[:200]!r}")
            return
        answer = json.loads(content)
        version = next(each for each in self.versions if each.name == answer["model"]["version"])
        if not version.agrees(picture, answer):
            self.faults.append(f"{version.name} answers {_row(answer)}, expected {version.answers[picture]}")
        self.answered.append((begun, version.name))

    @contextmanager
    def from_clients(self, clients: int) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(self.answered) > 2 * clients or bool(self.faults))
            yield
            enough = len(self.answered) + 3 * clients
            wait_until(lambda: len(self.answered) > enough or bool(self.faults))
        finally:
            self._enough.set()
            for thread in threads:
                thread.join()
        assert not self.faults, self.faults[:5]

    def versions_since(self, moment: float) -> set[str]:
        """Of requests that began after it."""
        return {name for begun, name in self.answered if begun > moment}


def as_files(pictures: NDArray[np.uint8]) -> list[bytes]:
    return [encoded(picture) for picture in pictures]
