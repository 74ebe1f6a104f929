"""ModelStreamInfer over a real socket, with a device that is held or sets the pace."""

import queue
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from msmlp.service.grpc import calls, streams
from tests.fakes import PATIENCE_SECONDS, picture, pictures
from tests.servers import Submissions, wait_until
from tests.service.grpc.conftest import Caller, Serve, column, infer_request
from tests.service.http.test_door import shut

ONE = pictures(1, 1.0, label=3, size=32)


class Requests:
    """What a client sends on a stream, by and by."""

    def __init__(self, *first: Any) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        for request in first:
            self._queue.put(request)

    def send(self, request: Any) -> None:
        """One more; None is the end."""
        self._queue.put(request)

    def __iter__(self) -> Iterator[Any]:
        return iter(lambda: self._queue.get(timeout=PATIENCE_SECONDS), None)


def values(response: Any) -> dict[str, Any]:
    """Its parameters."""
    found = response.infer_response.parameters
    return {name: getattr(found[name], found[name].WhichOneof("parameter_choice")) for name in found}


def test_every_request_is_answered_and_errors_end_nothing(serve: Serve) -> None:
    with serve() as served:
        sent = [infer_request(ONE, "a"), infer_request(ONE, "b", policy="best"), infer_request(ONE, "c")]
        unreadable = infer_request(ONE, "d")
        unreadable.model_name = "other"
        found = list(served.call.stream(iter([*sent, unreadable])))
        assert [response.infer_response.id for response in found] == ["a", "b", "c", "d"]
        assert [bool(response.error_message) for response in found] == [False, True, False, True]
        assert found[1].error_message.startswith("policy: 'best' is not an operating point")
        assert found[3].error_message.startswith("no model 'other'")
        assert all(values(response)["triton_final_response"] for response in found)
        assert column(found[2].infer_response, "class_id") == [3]
        assert served.rows("ModelStreamInfer") == {"200", "400", "404"}


def test_an_idle_stream_makes_room_and_a_busy_one_is_not_idle(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "IDLE_SECONDS", 1)
    # One stream at a time.
    with serve(max_bodies_bytes=100_000, max_body_bytes=100_000) as served:
        requests = Requests(infer_request(ONE, "a"))
        with served.backend.gate.held():
            answers = served.call.stream(iter(requests))
            time.sleep(1.5)  # longer than it may be idle
        assert next(answers).infer_response.id == "a"
        requests.send(infer_request(ONE, "b"))
        assert next(answers).infer_response.id == "b"
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
        error: Any = raised.value
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "the stream was idle for 1 s; open one when there is a request to send"
        requests.send(None)
        [again] = served.call.stream(iter([infer_request(ONE, "c")]))
        assert again.infer_response.id == "c"


def test_every_exit_of_every_image_as_it_lands(serve: Serve) -> None:
    images = np.stack([picture(1.0, label=1, size=32), picture(0.2, 0.2, 0.6, label=2, size=32)])
    with serve() as served:
        found = list(served.call.stream(iter([infer_request(images, "a", stream=True, thresholds="0.5,0.5")])))
    landed = [
        (v["index"], column(response.infer_response, "exit"), v["reason"], v["final"], v["triton_final_response"])
        for response, v in ((response, values(response)) for response in found)
    ]
    assert sorted(landed) == [
        (0, [1], "confident", True, False),
        (1, [1], "goes_on", False, False),
        (1, [2], "goes_on", False, False),
        (1, [3], "final", True, True),
    ]
    assert all(values(response)["source"] == "request" for response in found)


def test_a_failure_after_something_has_landed(serve: Serve) -> None:
    with serve() as served:

        def fail(stage: int, pixels: Any) -> None:
            if stage == 1:
                raise RuntimeError("the device is gone")

        served.backend.fail = fail
        images = pictures(1, 0.1, 0.1, 0.9, size=32)
        first, second = served.call.stream(iter([infer_request(images, "a", stream=True, thresholds="1,1")]))
        assert (first.error_message, values(first)["triton_final_response"]) == ("", False)
        assert second.error_message
        assert second.infer_response.id == "a"
        assert values(second)["triton_final_response"]


def test_one_that_is_late_keeps_no_stream_waiting_but_answers_keep_their_order(serve: Serve) -> None:
    with serve() as served:
        submissions = Submissions(served.service.engine)
        requests = Requests(infer_request(ONE, "a"))
        with served.backend.gate.held():
            responses = served.call.stream(iter(requests))
            submissions.wait_for(1)
            requests.send(infer_request(ONE, "b", policy="best"))  # refused at once, and told when it is its turn
            requests.send(infer_request(ONE, "c"))
            submissions.wait_for(1)
        requests.send(None)
        assert [response.infer_response.id for response in responses] == ["a", "b", "c"]


def test_a_client_that_leaves_cancels_all_its_images(serve: Serve) -> None:
    with serve(capacity=8) as served:
        submissions = Submissions(served.service.engine)
        with served.backend.gate.held():
            requests = Requests(*[infer_request(ONE, stream=streamed) for streamed in (False, True)])
            responses = served.call.stream(iter(requests))
            submissions.wait_for(2)
            assert served.service.engine.admission.inflight == 2
            responses.cancel()
            requests.send(None)
            wait_until(lambda: served.service.engine.admission.inflight == 0)
        wait_until(lambda: served.rows("ModelStreamInfer") == {"499"})


def test_an_ending_server_answers_what_it_has_read_and_ends_the_stream(serve: Serve) -> None:
    requests = Requests(infer_request(ONE, "a"))
    with serve() as served:
        responses = served.call.stream(iter(requests))
        assert next(responses).infer_response.id == "a"
        # The server ends with the block; the stream is open and idle.
    assert responses.code() == grpc.StatusCode.UNAVAILABLE
    assert responses.details() == "this process of the service ends; open another stream"
    requests.send(None)


def test_there_are_no_more_streams_than_calls_may_receive(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["one"]
    monkeypatch.setattr(calls, "_client", lambda _: names[0])
    with serve(max_bodies_bytes=20_000, max_body_bytes=10_000) as served:
        opened, streams = [Requests(infer_request(ONE)) for _ in range(2)], []
        for names[0], requests in zip(("one", "two"), opened, strict=True):
            streams.append(served.call.stream(iter(requests)))
            next(streams[-1])
        names[0] = "three"
        third = served.call.stream(iter([infer_request(ONE)]))
        assert third.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert third.details() == "2 streams are open, the maximum is 2"
        assert 'msmlp_shed_total{reason="memory"} 1.0' in served.http.get("/metrics").text
        for requests in opened:
            requests.send(None)
        assert [list(stream) for stream in streams] == [[], []]
        wait_until(lambda: bool(list(served.call.stream(iter([infer_request(ONE)])))))


def test_silent_streams_of_one_client_leave_room_for_others(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["one"]
    monkeypatch.setattr(calls, "_client", lambda _: names[0])
    # Two of eight streams for a client.
    with serve(max_bodies_bytes=800_000, max_body_bytes=100_000) as served:
        opened = [Requests() for _ in range(10)]
        silent = [served.call.stream(iter(requests)) for requests in opened]
        wait_until(lambda: 'msmlp_shed_total{reason="memory"} 8.0' in served.http.get("/metrics").text)
        names[0] = "two"
        for _ in range(3):
            assert len(list(served.call.stream(iter([infer_request(ONE)])))) == 1
        names[0] = "one"
        refused = served.call.stream(iter([infer_request(ONE)]))
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details() == "2 streams of this client are open, the maximum is 2"
        for requests, stream in zip(opened, silent, strict=True):
            requests.send(None)
            stream.cancel()
        wait_until(lambda: bool(answered(served)))


def test_a_refused_message_is_not_kept_while_its_refusal_waits_for_its_turn(serve: Serve) -> None:
    large = infer_request(np.zeros((100, 32, 32, 3), np.uint8))
    size, count = large.ByteSize(), 20
    with serve() as served:
        submissions, requests = Submissions(served.service.engine), Requests(infer_request(ONE, "a"))
        with served.backend.gate.held():
            responses = served.call.stream(iter(requests))
            submissions.wait_for(1)
            shut(served.service)
            tracemalloc.start()
            try:
                for _ in range(count):
                    requests.send(large)
                told = f'msmlp_requests_total{{route="grpc/ModelStreamInfer",status="429"}} {count}.0'
                wait_until(lambda: told in served.http.get("/metrics").text)
                assert tracemalloc.get_traced_memory()[0] < count * size / 4
            finally:
                tracemalloc.stop()
        requests.send(None)
        assert [bool(response.error_message) for response in responses] == [False] + [True] * count


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_does_not_read_makes_room(serve: Serve, streamed: bool) -> None:
    how = {"stream": True, "thresholds": "1,1"} if streamed else {}
    request = infer_request(pictures(64, 0.1, 0.1, 0.9, size=32), **how)
    request.ClearField("outputs")  # all there are
    small_window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]
    # One stream at a time.
    with serve(max_bodies_bytes=10**8, max_body_bytes=10**8, body_seconds=0.5) as served:
        port = served.service.settings.grpc_port
        with grpc.insecure_channel(f"127.0.0.1:{port}", small_window) as channel:
            unread = Caller(channel).stream(iter([request] * (10 if streamed else 200)))
            wait_until(lambda: 'msmlp_timeouts_total{phase="answer"} 1.0' in served.http.get("/metrics").text)
            wait_until(lambda: bool(answered(served)))
            wait_until(lambda: served.service.engine.admission.inflight == 0)
            with pytest.raises(grpc.RpcError) as raised:
                list(unread)
            error: Any = raised.value
            assert (error.code(), error.details()) == (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                "a response was not read in time",
            )


def answered(served: Any) -> list[Any]:
    """What one stream more answers; nothing when there is no room for it."""
    try:
        return list(served.call.stream(iter([infer_request(ONE)])))
    except grpc.RpcError:
        return []
