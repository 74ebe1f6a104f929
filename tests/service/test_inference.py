"""What the routes and `msmlp.load` share, without HTTP."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msmlp.service.errors import BadImagesError, ExpiredError, OverloadedError
from msmlp.service.inference import ClassifyRequest, classify, stream
from msmlp.service.options import RequestOptions
from msmlp.service.service import Service
from msmlp.service.telemetry.record import RequestRecord
from tests.fakes import PATIENCE_SECONDS, picture, pictures
from tests.servers import encoded, fake_backend, fake_service


def play(weights: Path, scenario: Callable[[Service], Awaitable[None]]) -> None:
    """A scenario on a ready service; at its end every permit is free."""

    async def main() -> None:
        backend = fake_backend(capacity=16)
        service = fake_service(weights, lambda: backend, capacity=16)
        service.engine.start()
        assert await asyncio.to_thread(service.engine.worker.ready.wait, PATIENCE_SECONDS)
        try:
            await scenario(service)
        finally:
            await service.engine.stop()
            service.decoders.shutdown()
        assert service.engine.inflight == backend.taken == 0

    asyncio.run(main())


def call(*images: Any, arrival: float | None = None, **options: Any) -> ClassifyRequest:
    sources = images[0] if len(images) == 1 and isinstance(images[0], np.ndarray | list) else images
    given = RequestOptions(**{"thresholds": (0.5, 0.5), **options})
    return ClassifyRequest(sources, given, RequestRecord("an-id", time.monotonic() if arrival is None else arrival))


def test_pixels_and_files_get_the_same_answer(tiny_weights: Path) -> None:
    async def scenario(service: Service) -> None:
        image = picture(0.2, 0.9, label=3, size=32)
        for source in (image[None], [image], [encoded(image)]):
            document = await classify(service, call(source))
            (result,) = document["results"]
            assert (result["exit"], result["class_id"], document["request_id"]) == (2, 3, "an-id")

    play(tiny_weights, scenario)


def test_the_longest_queueing_and_compute_of_any_image_are_told(tiny_weights: Path) -> None:
    async def scenario(service: Service) -> None:
        images = np.stack([picture(1.0, size=32), picture(0.2, 0.2, 0.6, size=32)])
        asked = call(images)
        document, record = await classify(service, asked), asked.record
        sums = [
            [sum(stage[name] for stage in result["stages"]) / 1e3 for name in ("queue_ms", "compute_ms")]
            for result in document["results"]
        ]
        assert [record.queue_seconds, record.compute_seconds] == pytest.approx(np.max(sums, axis=0), abs=1e-5)
        assert record.decode_seconds >= 0

    play(tiny_weights, scenario)


def test_latency_and_deadline_count_from_arrival(tiny_weights: Path) -> None:
    async def scenario(service: Service) -> None:
        long_ago = time.monotonic() - 100
        document = await classify(service, call(pictures(1, 1.0, size=32), arrival=long_ago, deadline_ms=1e6))
        assert document["latency_ms"] >= document["results"][0]["latency_ms"] >= 100_000
        with pytest.raises(ExpiredError):
            await classify(service, call(pictures(1, 1.0, size=32), arrival=long_ago, deadline_ms=99_999))

    play(tiny_weights, scenario)


@pytest.mark.parametrize("streamed", [False, True])
def test_whatever_goes_wrong_the_places_come_back(tiny_weights: Path, streamed: bool) -> None:
    async def ask(service: Service, given: ClassifyRequest) -> None:
        if streamed:
            [line async for line in stream(service, given)]
        else:
            await classify(service, given)

    async def scenario(service: Service) -> None:
        flag = {"stream": True} if streamed else {}
        with pytest.raises(BadImagesError):
            await ask(service, call(b"no picture", **flag))
        with pytest.raises(OverloadedError):
            await ask(service, call(pictures(17, 1.0, size=32), **flag))
        with pytest.raises(ExpiredError):
            await ask(service, call(pictures(2, 1.0, size=32), deadline_ms=0, **flag))
        assert service.engine.inflight == 0
        await ask(service, call(pictures(16, 1.0, size=32), **flag))
        assert service.engine.inflight == 0

    play(tiny_weights, scenario)


def test_a_stream_that_is_left_gives_its_places_back(tiny_weights: Path) -> None:
    async def scenario(service: Service) -> None:
        lines = stream(service, call(pictures(4, 0.2, 0.2, size=32), stream=True))
        assert (await anext(lines))["exit"] == 1
        await lines.aclose()
        assert service.engine.inflight == 0

    play(tiny_weights, scenario)


def test_who_reads_a_stream_slowly_holds_no_places(tiny_weights: Path) -> None:
    async def scenario(service: Service) -> None:
        lines = stream(service, call(pictures(4, 0.2, 0.2, size=32), stream=True))
        seen = [await anext(lines)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while service.engine.inflight:  # nothing more is read meanwhile
                await asyncio.sleep(0.01)
        seen += [line async for line in lines]
        assert sum(line["final"] for line in seen) == 4
        assert service.engine.inflight == 0

    play(tiny_weights, scenario)
