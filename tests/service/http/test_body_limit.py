"""What all bodies together may hold, over a real socket."""

from pathlib import Path

from tests.fakes import picture
from tests.servers import encoded, fake_backend, fake_service, serving

IMAGE = encoded(picture(1.0, size=32))
PNG = {"Content-Type": "image/png"}


def test_bodies_beyond_the_memory_for_them_are_shed_and_their_bytes_come_back(tiny_weights: Path) -> None:
    service = fake_service(tiny_weights, fake_backend, max_bodies_bytes=2 * len(IMAGE))
    with serving(service) as client:
        for _ in range(5):  # one after the other they fit
            assert client.post("/classify", content=IMAGE, headers=PNG).status_code == 200
        answer = client.post("/classify", content=3 * IMAGE, headers=PNG)
        assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
        assert int(answer.headers["Retry-After"]) >= 1
        assert client.post("/classify", content=IMAGE, headers=PNG).status_code == 200
        assert 'msmlp_shed_total{reason="memory"} 1.0' in client.get("/metrics").text
