"""What the routes and `msmlp.load` share, without HTTP."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msmlp.model.exits.rule import Reason
from msmlp.service.engine.messages import HISTORY, ExitParameters
from msmlp.service.engine.result import Result
from msmlp.service.errors import BadImagesError, ExpiredError, OverloadedError
from msmlp.service.http.schemas import Answer
from msmlp.service.inference import ClassifyRequest, answer_document, classify, stream
from msmlp.service.operating_points import ResolvedPoint
from msmlp.service.options import RequestOptions
from msmlp.service.service import Facts, Service
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
        assert service.engine.admission.inflight == backend.taken == 0

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


def test_the_longest_queueing_and_compute_of_any_image_are_reported(tiny_weights: Path) -> None:
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
def test_permits_return_whatever_goes_wrong(tiny_weights: Path, streamed: bool) -> None:
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
        assert service.engine.admission.inflight == 0
        await ask(service, call(pictures(16, 1.0, size=32), **flag))
        assert service.engine.admission.inflight == 0

    play(tiny_weights, scenario)


def test_a_stream_that_is_left_returns_its_permits(tiny_weights: Path) -> None:
    async def scenario(service: Service) -> None:
        lines = stream(service, call(pictures(4, 0.2, 0.2, size=32), stream=True))
        assert (await anext(lines))["exit"] == 1
        await lines.aclose()
        assert service.engine.admission.inflight == 0

    play(tiny_weights, scenario)


def test_a_slow_reader_of_a_stream_holds_no_permits(tiny_weights: Path) -> None:
    async def scenario(service: Service) -> None:
        lines = stream(service, call(pictures(4, 0.2, 0.2, size=32), stream=True))
        seen = [await anext(lines)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while service.engine.admission.inflight:  # nothing more is read meanwhile
                await asyncio.sleep(0.01)
        seen += [line async for line in lines]
        assert sum(line["final"] for line in seen) == 4
        assert service.engine.admission.inflight == 0

    play(tiny_weights, scenario)


# --- the answer document ---------------------------------------------------------------------------------------------


CLASSES = ("cat", "dog", "frog", "ship")


@pytest.fixture
def point() -> ResolvedPoint:
    return ResolvedPoint("fast", "request", ExitParameters(np.array([0.9, 0.8]), 1, 3), 0.75, 0.01, 0.2)


@pytest.fixture
def result() -> Result:
    """Two images: one left at exit 1 as a frog, one at exit 3 as a cat, after having looked like a dog twice."""
    history = np.zeros((2, 3), dtype=HISTORY)
    history["score"][:] = [[0.95, 0, 0], [0.4, 0.5, 0.61]]
    history["confidence"][:] = history["score"]
    history["class_id"][:] = [[2, 0, 0], [1, 1, 0]]
    history["queue_seconds"][:] = [[0.001, 9, 9], [0.002, 0.003, 0.004]]
    history["compute_seconds"][:] = [[0.01, 9, 9], [0.01, 0.02, 0.03]]
    history["batch_size"][:] = [[2, 9, 9], [2, 1, 5]]
    probabilities = np.array([[0.01, 0.02, 0.95, 0.02], [0.61, 0.2, 0.19, 0.0]], dtype=np.float32)
    reasons = np.array([Reason.CONFIDENT, Reason.FINAL], dtype=np.int8)
    return Result(np.array([0, 1]), np.array([1, 3]), reasons, probabilities, history, np.array([100.012, 100.07]))


def answer(point: ResolvedPoint, result: Result, top_k: int = 2, deadline_ms: float | None = None) -> dict:
    facts = Facts({"name": "tiny", "version": "abc"}, CLASSES, [0.1, 0.3, 1.0])
    options = RequestOptions(top_k=top_k, deadline_ms=deadline_ms)
    request = ClassifyRequest([b"", b""], options, RequestRecord("id-1", 100.0, point=point))
    document = answer_document(facts, request, result, throughput=812.04)
    assert Answer.model_validate(document).model_dump(exclude_unset=True) == document, (
        "the OpenAPI document says the same"
    )
    return document


def test_an_image_that_left_first(point: ResolvedPoint, result: Result) -> None:
    assert answer(point, result)["results"][0] == {
        "index": 0,
        "label": "frog",
        "class_id": 2,
        "confidence": pytest.approx(0.95),
        "score": pytest.approx(0.95),
        "top_k": [
            {"label": "frog", "class_id": 2, "probability": pytest.approx(0.95)},
            {"label": "dog", "class_id": 1, "probability": pytest.approx(0.02)},
        ],
        "exit": 1,
        "exits": 3,
        "reason": "confident",
        "gflops": 0.1,
        "degraded": False,
        "stages": [
            {
                "stage": 1,
                "score": pytest.approx(0.95),
                "confidence": pytest.approx(0.95),
                "label": "frog",
                "queue_ms": 1.0,
                "compute_ms": 10.0,
                "batch_size": 2,
            }
        ],
        "latency_ms": pytest.approx(12, abs=0.01),
    }


def test_an_image_that_went_all_the_way(point: ResolvedPoint, result: Result) -> None:
    last = answer(point, result)["results"][1]
    assert (last["label"], last["exit"], last["reason"], last["gflops"]) == ("cat", 3, "final", 1.0)
    assert [stage["label"] for stage in last["stages"]] == ["dog", "dog", "cat"]
    assert [stage["batch_size"] for stage in last["stages"]] == [2, 1, 5]
    assert [stage["score"] for stage in last["stages"]] == pytest.approx([0.4, 0.5, 0.61])


def test_with_a_deadline_each_image_says_what_was_left_of_it(point: ResolvedPoint, result: Result) -> None:
    document = answer(point, result, deadline_ms=50)
    assert [image["deadline_margin_ms"] for image in document["results"]] == pytest.approx([38, -20], abs=0.01)
    assert "deadline_margin_ms" not in answer(point, result)["results"][0]


def test_around_the_images(point: ResolvedPoint, result: Result) -> None:
    document = answer(point, result)
    assert (document["request_id"], document["model"]) == ("id-1", {"name": "tiny", "version": "abc"})
    assert document["throughput_images_per_second"] == 812.0
    assert document["operating_point"] == {
        "name": "fast",
        "source": "request",
        "thresholds": [0.9, 0.8],
        "expected_accuracy": 0.75,
        "standard_error": 0.01,
        "expected_gflops": 0.2,
    }


def test_top_k_beyond_the_classes_lists_all_of_them_in_order(point: ResolvedPoint, result: Result) -> None:
    for row in answer(point, result, top_k=99)["results"]:
        assert row["top_k"][0]["class_id"] == row["class_id"]
        probabilities = [entry["probability"] for entry in row["top_k"]]
        assert len(probabilities) == 4
        assert probabilities == sorted(probabilities, reverse=True)


def test_a_tie_goes_to_the_class_that_the_stage_named(point: ResolvedPoint, result: Result) -> None:
    result.probabilities[0] = [0.1, 0.1, 0.4, 0.4]
    row = answer(point, result)["results"][0]
    assert (row["label"], row["class_id"], row["top_k"][0]["label"]) == ("frog", 2, "frog")


def test_a_score_just_under_its_threshold_is_not_rounded_onto_it(point: ResolvedPoint, result: Result) -> None:
    """A client that applies the rule to the answer must get the same exit: float32 numbers near 0.9 are 6e-8 apart."""
    below = np.nextafter(np.float32(0.9), np.float32(0))
    result.history["score"][1, 0] = below
    assert answer(point, result)["results"][1]["stages"][0]["score"] < 0.9
