"""The sweep through overload: its load, and its page."""

import re
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.overload.__main__ import figures, left_behind
from benchmarks.overload.load import Seen, offer
from benchmarks.overload.page import page
from msmlp.bench.generator import Load

ANSWERS = {
    b"/yes": b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n" + b'{"degraded":true}\r\n',
    b"/no": b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n",
    b"/end": b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx",
}


class Answer(socketserver.StreamRequestHandler):
    """By the path, until the client or an answer ends the connection."""

    def handle(self) -> None:
        while head := self.rfile.readline():
            while self.rfile.readline() != b"\r\n":
                pass
            path = head.split()[1]
            self.wfile.write(ANSWERS[path])
            if path == b"/end":
                return


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 128
    """More than come at once: who finds no room tries again seconds later."""


@contextmanager
def server() -> Iterator[str]:
    """Its url."""
    with Server(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


def test_requests_come_at_their_rate_and_answers_are_told_apart() -> None:
    with server() as url:
        requests = tuple(b"POST %b HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in ANSWERS)
        seen = offer(Load(url, requests, 500, 1.0), 300.0)
        again = offer(Load(url, requests, 500, 1.0), 300.0)
    found = {status: len(seconds) for status, seconds in seen.seconds.items() if seconds}
    assert set(found) == {"200", "429"}
    assert 170 < sum(found.values()) < 280, "Poisson, less the first quarter"
    assert set(found) == {status for status, seconds in again.seconds.items() if seconds}
    assert seen.retry_after == {7: found["429"]}
    assert 0 < seen.degraded < found["200"]
    row = figures(seen)
    assert row["shed"] == found["429"] / sum(found.values())
    assert row["statuses"]["unanswered"] == 0


def row(kind: str, load: float, goodput: float, p99: float, refusal: float) -> dict[str, object]:
    seen = Seen({"200": [p99 / 1e3] * 10, "429": [refusal / 1e3]}, Counter(), 5, [0.0], 10 / goodput)
    return {"kind": kind, "capacity": 100.0, "load": load, **figures(seen)}


def test_the_page_says_which_goals_are_met() -> None:
    rest = {
        "rss_mib": 100.0,
        "descriptors": 20.0,
        **dict.fromkeys(("msmlp_inflight_images", "msmlp_queue_images"), 0.0),
    }
    rest |= dict.fromkeys(("msmlp_body_work", "msmlp_brownout_level"), 0.0)
    after = {**rest, "msmlp_body_work": 5.0, "rss_mib": 120.0}
    faults = left_behind([rest, rest, after])
    assert faults == ["msmlp_body_work is 5 at the end", "memory grew from 100 to 120 MiB"]
    assert left_behind([rest, after, after, rest]) == []
    document = {
        "machine": "a machine",
        "date": "today",
        "load_average_before": 0.0,
        "seconds": 1,
        "overload_seconds": 2,
        "max_wait_ms": 2000.0,
        "rows": [
            row("forms of 16", 1.0, 100.0, 50.0, 5.0),
            row("forms of 16", 3.0, 80.0, 4500.0, 99.0),
            {"kind": "overload", "rests": [rest, rest, after]},
        ],
        "faults": faults,
    }
    text = page(document)
    goals = re.findall(r"^\| (.+?) \| ([≥≤n].+?) \| (.+?) \| (met|\*\*missed\*\*) \|$", text, flags=re.MULTILINE)
    assert [(found, end) for _, _, found, end in goals] == [
        ("80%", "**missed**"),
        ("4500 ms", "**missed**"),
        ("99 ms", "met"),
        (", ".join(faults), "**missed**"),
    ]
    assert "python -m benchmarks.overload" in text
