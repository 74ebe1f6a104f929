"""The page on the front end is what its document and its notes say."""

import json

from scripts.http_page import BENCHMARKS, page


def test_the_page_is_the_documents() -> None:
    result = json.loads((BENCHMARKS / "http.json").read_text())
    assert (BENCHMARKS / "http.md").read_text() == page(result, (BENCHMARKS / "http_notes.md").read_text())


def test_every_closed_loop_has_its_share_of_the_reference() -> None:
    servers = {"reference": 200.0, "null": 150.0, "real": 50.0}
    rows = [
        {
            "server": server,
            "body": "image",
            "loop": "closed",
            "connections": 8,
            "requests_per_second": speed,
            "generator_cpu": 0.2,
            "statuses": {"200": 9},
            "server_cpu_seconds_per_1000": None,
            "p50_ms": 1.0,
            "p99_ms": 2.0,
        }
        for server, speed in servers.items()
    ]
    text = page({"rounds": 3, "seconds": 2.0, "cores": 2, "load": rows}, "Notes.\n")
    assert "| image | 8 | 200 | 150 | 75 % | 50.0 | 9 x 200 | - | - | - |" in text
    assert "| image | 8 | 1.0 / 2.0 | 1.0 / 2.0 | 1.0 / 2.0 |" in text
    assert text.endswith("Notes.\n")
    assert "alone" not in text.partition("## Closed loop")[2]
