"""Load on a service, and what its answers add up to: for what its metrics say to be compared with."""

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from msmlp.bench.generator import Load, Seen, offer, request_bytes
from msmlp.bench.images import pick_images
from tests.servers import encoded

CAT = Path(__file__).resolve().parents[2] / "examples" / "cat.jpg"
OIP = "/v2/models/msmlp/infer"


@dataclass(frozen=True)
class Kind:
    """A request that the generator sends, what metrics call its route, and how many images it has."""

    route: str
    sent: bytes
    images: int
    deadline: bool = False


class Tally(Seen):
    """Adds up every answer; `gflops` is the cumulative cost of each exit."""

    def __init__(self, kinds: Sequence[Kind], gflops: list[float]) -> None:
        super().__init__()
        self._kinds, self._gflops = kinds, gflops
        self.requests: Counter[tuple[str, ...]] = Counter()
        self.images: Counter[tuple[str, ...]] = Counter()
        self.deadlines: Counter[tuple[str, ...]] = Counter()
        self.latency: dict[str, float] = defaultdict(float)
        self.waited = self.spent = self.expected = 0.0

    def note(self, request: int, status: str, body: bytes, latency: float) -> None:
        """An answer to one of the kinds."""
        super().note(request, status, body, latency)
        kind = self._kinds[request]
        self.requests[kind.route, status] += 1
        self.waited += latency
        if kind.route.startswith("/v2"):
            self._oip(json.loads(body))
        elif status == "200":
            document = json.loads(body)
            self.classified(document["results"], document["operating_point"], deadline=kind.deadline)
        elif status == "504":  # sent with thresholds that let nothing leave early
            self.images["none", "expired"] += kind.images
            self.deadlines["expired",] += kind.images
            self.expected += kind.images * self._gflops[-1]

    def classified(self, results: list[dict[str, Any]], point: dict[str, Any], *, deadline: bool = False) -> None:
        """Entries of `results`."""
        for result in results:
            self.images[str(result["exit"]), result["reason"]] += 1
            self.latency[str(result["exit"])] += result["latency_ms"] / 1e3
            self.spent += result["gflops"]
            self.expected += point["expected_gflops"]
            if deadline:
                late, short = result["deadline_margin_ms"] < 0, result["reason"] == "deadline"
                self.deadlines["late" if late else "cut_short" if short else "met",] += 1

    def _oip(self, document: dict[str, Any]) -> None:
        outputs = {output["name"]: output["data"] for output in document["outputs"]}
        for exit, gflops in zip(outputs["exit"], outputs["gflops"], strict=True):
            assert exit == len(self._gflops), "sent with thresholds that let nothing leave early"
            self.images[str(exit), "final"] += 1
            self.spent += gflops
            self.expected += self._gflops[-1]

    @property
    def answered(self) -> int:
        """Images, those that expired too."""
        return sum(self.images.values())


def kinds_for(url: str) -> list[Kind]:
    """Pictures easy and hard, with options that lead to every exit and reason, and mistakes."""
    pictures = [encoded(pixels) for pixels in pick_images(None, 16, 32)]
    options = (
        {},
        {"policy": "fast"},
        {"policy": "accurate"},
        {"thresholds": "0,0"},
        {"thresholds": "1,0"},
        {"thresholds": "1,1"},
        {"thresholds": "0.5,0.5"},
        {"thresholds": "1,1", "max_exit": "2"},
        {"deadline_ms": "60000"},
        {"deadline_ms": "0", "min_exit": "1"},
        {"deadline_ms": "0", "thresholds": "1,1"},
    )

    def kind(path: str, content: bytes, content_type: str, route: str = "", **more: Any) -> Kind:
        return Kind(route or path.partition("?")[0], request_bytes(url, path, content, content_type), **more)

    kinds = [
        kind(f"/classify?{urlencode(given)}", picture, "image/png", images=1, deadline="deadline_ms" in given)
        for given in options
        for picture in pictures
    ]
    four = json.dumps({"images": [base64.b64encode(picture).decode() for picture in pictures[:4]]}).encode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(CAT.read_bytes()).decode()]}
    infer = {"inputs": [tensor], "parameters": {"thresholds": "1,1"}}
    return [
        *kinds,
        kind("/classify", CAT.read_bytes(), "image/jpeg", images=1),
        kind("/classify", four, "application/json", images=4),
        kind(OIP, json.dumps(infer).encode(), "application/json", "/v2/models/{name}/infer", images=1),
        kind("/classify", b"no picture", "image/png", images=0),
        kind("/classify", b"text", "text/plain", images=0),
        kind("/nowhere", b"", "text/plain", "other", images=0),
    ]


def stream(client: httpx.Client, tally: Tally) -> None:
    """Two pictures, line by line; the generator reads no such answers."""
    files = [("images", CAT.read_bytes()), ("images", encoded(pick_images(None, 1, 32)[0]))]
    answer = client.post("/classify", params={"stream": "true"}, files=files)
    assert answer.status_code == 200, answer.text
    tally.requests["/classify", "200"] += 1
    tally.waited += answer.elapsed.total_seconds()
    for line in map(json.loads, answer.text.splitlines()):
        if line["final"]:
            tally.classified([line], line["operating_point"])


def drive(client: httpx.Client, kinds: Sequence[Kind], tally: Tally, seconds: float) -> None:
    """Some streams, one of every kind at once, then eight connections for so long."""
    for _ in range(5):
        stream(client, tally)
    requests = tuple(kind.sent for kind in kinds)
    for connections, lasting in ((len(kinds), 0.1), (8, seconds)):
        offer(Load(str(client.base_url), requests, connections, lasting), tally)
