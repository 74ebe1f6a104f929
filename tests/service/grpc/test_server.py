"""What only a held, broken or unready device shows, over a real socket. The real client: tests/e2e/test_grpc.py."""

import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from msmlp.service import certificate
from msmlp.service import service as services
from msmlp.service.engine import async_engine
from msmlp.service.grpc import calls
from msmlp.service.grpc.messages import METHODS
from msmlp.service.memory import resident_bytes
from tests.certificates import issue, secured
from tests.fakes import PATIENCE_SECONDS, picture, pictures
from tests.servers import Submissions, encoded, wait_until
from tests.service.grpc.conftest import Serve, column, infer_request
from tests.service.http.test_door import shut

ONE = pictures(1, 1.0, label=3, size=32)
SLOW_REQUEST = infer_request(pictures(1, 0.1, 0.1, 0.9, label=3, size=32), thresholds="1,1")


def test_while_it_ends(serve: Serve) -> None:
    with serve() as served:
        assert served.call("ServerReady").ready
        served.service.draining = True
        assert not served.call("ServerReady").ready
        assert not served.call("ModelReady", METHODS["ModelReady"].request(name="msmlp")).ready
        assert served.call("ServerLive").live
        [model] = served.call("RepositoryIndex").models
        assert model.state == "UNAVAILABLE"
        assert not served.call("RepositoryIndex", METHODS["RepositoryIndex"].request(ready=True)).models
        served.call("ModelInfer", infer_request(ONE))
        assert served.rows("ModelInfer") == {"200"}, "as long as somebody sends"


def test_a_renewed_certificate_is_shown_to_new_connections(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "LOOK_SECONDS", 0.01)

    def shown() -> str:
        address = "127.0.0.1", served.service.settings.grpc_port
        with secured(socket.create_connection(address, PATIENCE_SECONDS)) as connection:
            return str(connection.getpeercert()["serialNumber"])  # type: ignore[index]

    with serve(**issue(tmp_path).settings) as served:
        first = shown()
        assert first == shown()
        issue(tmp_path)
        wait_until(lambda: shown() != first)
        served.call("ModelInfer", infer_request(ONE))  # on a connection from before


def test_an_ending_server_answers_what_is_in_flight(serve: Serve) -> None:
    with ExitStack() as held, serve() as served:
        submissions, gate, call = Submissions(served.service.engine), served.backend.gate, served.call
        held.enter_context(gate.held())  # beyond the server's end
        first = call.start("ModelInfer", SLOW_REQUEST)
        submissions.wait_for(1)

        def open_when_it_ends() -> None:
            wait_until(lambda: call.start("ServerLive", b"").exception() is not None)  # no call is taken any more
            gate.open()

        opener = threading.Thread(target=open_when_it_ends)
        opener.start()
        held.callback(opener.join)
    assert column(first.result(), "exit") == [3]


def test_with_a_deadline_nobody_waits_for_a_device_that_hangs(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_engine, "LATE", 0.0)
    with serve() as served, served.backend.gate.held():
        code, detail, _ = served.call.refused("ModelInfer", infer_request(ONE, deadline_ms=10))
        assert (code, "by its deadline" in detail) == ("DEADLINE_EXCEEDED", True)


def test_full(serve: Serve) -> None:
    with serve(capacity=4) as served:
        submissions = Submissions(served.service.engine)
        with served.backend.gate.held():
            first = served.call.start("ModelInfer", infer_request(pictures(4, 0.9, size=32)))
            submissions.wait_for(1)
            code, detail, metadata = served.call.refused("ModelInfer", infer_request(ONE))
            assert (code, "4 of 4 images in flight" in detail) == ("RESOURCE_EXHAUSTED", True)
            assert int(metadata["retry-pushback-ms"]) >= 1000
        assert column(first.result(), "exit") == [1] * 4
        assert served.rows("ModelInfer") == {"200", "429"}


@pytest.mark.parametrize("timeout", [None, 2])
def test_a_client_that_leaves_cancels_its_images(serve: Serve, timeout: float | None) -> None:
    """By itself, or when its own time is over."""
    with serve(capacity=4) as served:
        submissions = Submissions(served.service.engine)
        with served.backend.gate.held():
            first = served.call.start("ModelInfer", SLOW_REQUEST)
            served.backend.gate.wait_until_reached()
            second = served.call.start("ModelInfer", infer_request(pictures(3, 0.9, size=32)), timeout=timeout)
            submissions.wait_for(2)
            if timeout is None:
                second.cancel()
            wait_until(lambda: served.service.engine.admission.inflight == 1)
        assert column(first.result(), "exit") == [3]
        wait_until(lambda: served.rows("ModelInfer") == {"200", "499"})


def test_large_messages_that_would_wait_too_long_to_be_read_are_refused(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msmlp.service.parsing.START", 1e-6)
    request, opened = infer_request(np.zeros((30, 32, 32, 3), np.uint8)), threading.Event()  # 92 ms
    with serve(max_wait_ms=100) as served:
        thread = served.service.parser.thread
        thread.submit(opened.wait)
        wait = [served.call.start("ModelInfer", request) for _ in range(2)]
        wait_until(lambda: thread._work_queue.qsize() == 2)
        code, detail, _ = served.call.refused("ModelInfer", request)
        assert (code, "the predicted wait is 18" in detail) == ("RESOURCE_EXHAUSTED", True)
        assert 'msmlp_shed_total{reason="door"} 1.0' in served.http.get("/metrics").text
        for call in wait:
            call.cancel()
        wait_until(lambda: served.rows("ModelInfer") == {"429", "499"})
        opened.set()
        assert len(column(served.call("ModelInfer", infer_request(ONE)), "exit")) == 1


def test_what_messages_hold_is_bounded_together_with_bodies(serve: Serve) -> None:
    request = SLOW_REQUEST
    with serve(max_bodies_bytes=2 * request.ByteSize() + 100, max_body_bytes=2 * request.ByteSize()) as served:
        submissions = Submissions(served.service.engine)
        for _ in range(5):  # one after the other they fit
            served.call("ModelInfer", request)
        submissions.wait_for(5)
        with served.backend.gate.held():
            held = [served.call.start("ModelInfer", request) for _ in range(2)]
            submissions.wait_for(2)
            code, detail, _ = served.call.refused("ModelInfer", request)
            assert (code, "request bodies already take" in detail) == ("RESOURCE_EXHAUSTED", True)
            assert served.http.post("/classify", content=b"x" * 200).status_code in (415, 429)
            png = {"Content-Type": "image/png"}
            assert served.http.post("/classify", content=b"x" * 200, headers=png).status_code == 429
        assert [column(call.result(), "exit") for call in held] == [[3], [3]]
        assert column(served.call("ModelInfer", request), "exit") == [3]


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_beyond_the_limit_is_refused_packed_or_not(serve: Serve, compression: Any) -> None:
    with serve(max_body_bytes=100_000) as served:
        large = infer_request(np.zeros((40, 32, 32, 3), np.uint8))
        code, detail, metadata = served.call.refused("ModelInfer", large, compression=compression)
        assert (code, "larger than max" in detail, metadata) == ("RESOURCE_EXHAUSTED", True, {})
        small = infer_request(np.zeros((30, 32, 32, 3), np.uint8), max_exit=1)
        assert column(served.call("ModelInfer", small, compression=compression), "exit") == [1] * 30
        wait_until(lambda: served.rows("ModelInfer") == {"200", "413"})


@contextmanager
def silent_call(served: Any) -> Iterator[Any]:
    """One that never sends its message."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield from ()

    try:
        yield served.call.channel.stream_unary("/inference.GRPCInferenceService/ModelInfer").future(nothing())
    finally:
        over.set()


def test_one_that_never_sends_its_message_keeps_others_waiting_for_a_bounded_time(serve: Serve) -> None:
    limits = {"max_bodies_bytes": 100_000, "max_body_bytes": 100_000, "body_seconds": 0.3}
    with serve(**limits) as served, silent_call(served) as call:
        assert call.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not arrive within 0.9 s" in call.details()
        assert 'msmlp_timeouts_total{phase="body"} 1.0' in served.http.get("/metrics").text
        assert column(served.call("ModelInfer", infer_request(ONE)), "class_id") == [3]


def test_a_call_that_gets_no_turn_may_be_retried(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "TURN_SECONDS", 0.2)
    with serve(max_bodies_bytes=100_000, max_body_bytes=100_000) as served, silent_call(served) as call:
        code, detail, metadata = served.call.refused("ModelInfer", infer_request(ONE))
        assert (code, detail) == (
            "RESOURCE_EXHAUSTED",
            "too many calls are sending messages, the maximum is 1",
        )
        assert "retry-pushback-ms" in metadata
        assert 'msmlp_shed_total{reason="memory"} 1.0' in served.http.get("/metrics").text
        call.cancel()
        wait_until(lambda: served.call.start("ModelInfer", infer_request(ONE)).exception() is None)


def test_silent_calls_of_one_client_leave_turns_to_others(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["one"]
    monkeypatch.setattr(calls, "_client", lambda _: names[0])
    # Two of eight turns for a client.
    with serve(max_bodies_bytes=800_000, max_body_bytes=100_000, body_seconds=0) as served, ExitStack() as silent:
        waiting = [silent.enter_context(silent_call(served)) for _ in range(3)]
        wait_until(lambda: served.call.start("ModelInfer", infer_request(ONE), timeout=0.3).exception() is not None)
        names[0] = "two"
        assert column(served.call("ModelInfer", infer_request(ONE)), "class_id") == [3]
        for call in waiting:
            call.cancel()
        names[0] = "one"
        assert column(served.call("ModelInfer", infer_request(ONE)), "class_id") == [3]


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.0.0.1:50000", "ipv4:10.0.0.1"),
        ("ipv6:%5Bfe80::1%5D:50000", "ipv6:%5Bfe80::1%5D"),
        ("unix:/run/a:b", "unix:/run/a:b"),
        ("unix:", "unix:"),
    ],
)
def test_a_client_is_an_address(peer: str, client: str) -> None:
    assert calls._client(peer) == client


def test_while_others_wait_a_silent_call_has_less_time(serve: Serve) -> None:
    limits = {"max_bodies_bytes": 100_000, "max_body_bytes": 100_000, "body_seconds": 0.5}
    with serve(**limits) as served, silent_call(served) as call:
        intake = served.call.start("ModelInfer", infer_request(ONE))
        refused = call.exception()
        assert refused.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not arrive within 0.5 s" in refused.details()
        assert column(intake.result(), "class_id") == [3]


def test_silent_calls_make_room_for_the_same_client_long_before_their_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "STALL_SECONDS", 0.2)
    # Two of eight turns for a client.
    with serve(max_bodies_bytes=800_000, max_body_bytes=100_000, body_seconds=3600) as served, ExitStack() as held:
        silent = [held.enter_context(silent_call(served)) for _ in range(2)]
        assert column(served.call("ModelInfer", infer_request(ONE)), "class_id") == [3]
        assert silent[0].exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not arrive within" in silent[0].details()
        for call in silent:
            call.cancel()


def test_where_messages_come_a_slow_one_is_not_ended(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "STALL_SECONDS", 2.0)
    # Two of eight turns for a client.
    with serve(max_bodies_bytes=800_000, max_body_bytes=100_000, body_seconds=3600) as served, ExitStack() as held:
        slow = held.enter_context(silent_call(served))
        until = time.monotonic() + 5
        while time.monotonic() < until:
            several = [served.call.start("ModelInfer", infer_request(ONE)) for _ in range(20)]
            assert all(column(call.result(), "class_id") == [3] for call in several)
        assert not slow.done()
        slow.cancel()


def test_a_limit_beyond_what_grpc_can_count_is_no_error(serve: Serve) -> None:
    with serve(max_body_bytes=3 * 2**30, max_bodies_bytes=3 * 2**30) as served:
        assert column(served.call("ModelInfer", infer_request(ONE)), "class_id") == [3]


def test_an_answer_that_takes_too_long_is_unavailable(serve: Serve) -> None:
    with serve(request_seconds=0.3) as served, served.backend.gate.held():
        code, detail, metadata = served.call.refused("ModelInfer", infer_request(ONE))
        assert (code, detail) == ("UNAVAILABLE", "no answer was ready within 0.3 s")
        assert "retry-pushback-ms" in metadata
        assert 'msmlp_timeouts_total{phase="request"} 1.0' in served.http.get("/metrics").text


def test_a_connection_that_says_nothing_is_closed(serve: Serve) -> None:
    with serve(head_seconds=0.3) as served:
        with socket.create_connection(("127.0.0.1", served.service.settings.grpc_port)) as silent:
            silent.settimeout(PATIENCE_SECONDS)
            while silent.recv(1000):  # its settings come first
                pass
        assert served.call("ServerLive").live  # others go on


def test_probes_do_not_wait_for_calls(serve: Serve) -> None:
    limits = {"max_bodies_bytes": 100_000, "max_body_bytes": 100_000, "body_seconds": 0}
    with serve(**limits) as served, silent_call(served) as call:
        request = METHODS["ModelReady"].request(name="msmlp")
        wait_until(lambda: served.call.start("ModelReady", request, timeout=0.2).exception() is not None)
        assert served.call("ServerReady").ready
        assert served.call("ServerLive").live
        call.cancel()
        assert served.call("ModelReady", request).ready


@pytest.mark.parametrize("part", ["inputs", "outputs", "raw_input_contents", "parameters"])
def test_a_small_message_of_many_parts_is_refused_unparsed(serve: Serve, part: str) -> None:
    many = {f"p{number}": {"int64_param": 1} for number in range(4000)}
    empty: Any = {"parameters": many, "raw_input_contents": [b""] * 16_000}.get(part, [{}] * 16_000)
    message = METHODS["ModelInfer"].request(model_name="msmlp", **{part: empty})
    with serve() as served:
        # What follows is no message, so a parser would say something else.
        for content in (message.SerializeToString(), message.SerializeToString() + b"\xff"):
            assert len(content) < calls.SMALL_BYTES
            code, detail, _ = served.call.refused("ModelInfer", content)
            assert (code, detail) == ("INVALID_ARGUMENT", "more than 128 tensors and parameters")
        [response] = served.call.stream(iter([message]))
        assert response.error_message == "more than 128 tensors and parameters"
        assert column(served.call("ModelInfer", infer_request(pictures(8, 1.0, label=3, size=32))), "exit") == [1] * 8


def test_a_call_without_a_message(serve: Serve) -> None:
    with serve() as served:
        call = served.call.channel.stream_unary("/inference.GRPCInferenceService/ModelInfer").future(iter(()))
        assert call.exception().code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "no message" in call.details()
        assert served.call.refused("ModelInfer", b"\xff")[:2] == (
            "INVALID_ARGUMENT",
            "the message is not a ModelInferRequest",
        )


def test_a_failure_of_the_server_is_named_and_not_explained(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("/etc/secret")

    monkeypatch.setattr("msmlp.service.grpc.calls.output_tensors", broken)
    with serve() as served:
        assert served.call.refused("ModelInfer", infer_request(ONE)) == ("INTERNAL", "the server failed", {})
        assert served.rows("ModelInfer") == {"500"}
    assert "ModelInfer failed" in caplog.text
    assert "/etc/secret" in caplog.text


def test_unknown_methods_and_models(serve: Serve) -> None:
    with serve() as served:
        unknown = served.call.channel.unary_unary("/inference.GRPCInferenceService/SystemSharedMemoryStatus")
        with pytest.raises(grpc.RpcError) as raised:
            unknown(b"")
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        for name, fields in (("ModelReady", {"name": "other"}), ("ModelConfig", {"name": "msmlp", "version": "1"})):
            code, detail, _ = served.call.refused(name, METHODS[name].request(**fields))
            assert (code, "no model" in detail) == ("NOT_FOUND", True)


def test_a_port_that_is_taken_and_a_package_that_is_missing(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msmlp.model.errors import OptionError
    from msmlp.service.http.server import serve as run
    from msmlp.service.settings import Settings

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(weights=tiny_weights, port=0, grpc_port=port)
        with pytest.raises(OptionError, match=rf"--grpc-port: cannot listen on 127.0.0.1:{port}"):
            run(settings)

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'grpc'", name="grpc")

    monkeypatch.setattr("msmlp.service.grpc.import_module", missing)
    with pytest.raises(OptionError, match=r"--grpc-port: needs the package grpc: pip install .msmlp.grpc."):
        run(settings)


def test_images_of_a_batch_keep_their_order(serve: Serve) -> None:
    with serve() as served:
        images = np.stack([picture(*scores, label=label, size=32) for label, scores in enumerate(((1.0,), (0, 1.0)))])
        response = served.call("ModelInfer", infer_request(images, request_id="r-1", thresholds="0.5,0.5"))
        assert (column(response, "class_id"), column(response, "exit")) == ([0, 1], [1, 2])
        assert (response.id, response.parameters["source"].string_param) == ("r-1", "request")


def test_under_overload_calls_are_refused_before_their_message_is_read(serve: Serve) -> None:
    with serve(max_wait_ms=2000) as served:
        submissions, door = Submissions(served.service.engine), served.service.engine.admission.door
        with served.backend.gate.held():
            first = served.call.start("ModelInfer", infer_request(ONE))
            submissions.wait_for(1)
            shut(served.service)
            for request in (infer_request(ONE), b"no message at all"):
                code, detail, metadata = served.call.refused("ModelInfer", request)
                assert (code, "the predicted wait is" in detail) == ("RESOURCE_EXHAUSTED", True)
                assert int(metadata["retry-pushback-ms"]) >= 1000
            [response] = served.call.stream(iter([infer_request(ONE, "a")]))
            assert "the predicted wait is" in response.error_message
            assert served.call("ServerLive").live
            assert served.call("ServerReady").ready
        assert column(first.result(), "exit") == [1]
        wait_until(lambda: door.work == 0)
        assert column(served.call("ModelInfer", infer_request(ONE)), "exit") == [1], "with nothing in work, any"
        assert 'msmlp_shed_total{reason="door"} 3.0' in served.http.get("/metrics").text


@pytest.mark.system  # it takes ten seconds or more
def test_what_calls_that_failed_held_is_freed_with_their_end(serve: Serve) -> None:
    """Errors refer to frames, and frames through futures to errors: collections are rare."""
    noise = b"\xff\xd8\xff" + bytes(1_500_000)
    request = METHODS["ModelInfer"].request(
        model_name="msmlp", raw_input_contents=[len(noise).to_bytes(4, "little") + noise]
    )
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    with serve() as served:

        def fail(times: int) -> None:
            for _ in range(times):
                assert served.call.refused("ModelInfer", request)[0] == "INVALID_ARGUMENT"
                [response] = served.call.stream(iter([request]))
                assert response.error_message
                served.call.stream(iter([request])).cancel()

        gc.collect()
        gc.disable()
        try:
            fail(25)  # the allocator takes some once
            before = resident_bytes()
            fail(40)
            assert resident_bytes() < before + 30 * 2**20, "180 MB if none of it is freed"
        finally:
            gc.enable()


def test_calls_that_are_refused_leave_no_cycles(serve: Serve) -> None:
    """A flood of them would be collected on the event loop."""

    def kept() -> int:
        return sum(type(each) is grpc.aio.AbortError for each in gc.get_objects())

    with serve() as served:
        gc.collect()
        gc.disable()
        try:
            before = kept()
            for _ in range(20):
                assert served.call.refused("ModelInfer", b"\xff")[0] == "INVALID_ARGUMENT"
            assert kept() < before + 10, "the last calls may not be over yet"
        finally:
            gc.enable()


def test_there_are_no_more_connections_than_allowed(serve: Serve) -> None:
    with serve(max_connections=3) as served, ExitStack() as held:
        address = ("127.0.0.1", served.service.settings.grpc_port)

        def connected() -> bool:
            """Whether the server greets a new connection, which stays open."""
            connection = held.enter_context(socket.create_connection(address, timeout=PATIENCE_SECONDS))
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            try:
                return bool(connection.recv(1))
            except ConnectionResetError:
                return False

        assert [connected() for _ in range(4)] == [True, True, False, False], "beside the channel's own"
        assert served.call("ServerLive").live
        assert served.http.get("/livez").status_code == 200


def image_request(*files: bytes) -> Any:
    """Encoded images as a ModelInferRequest."""
    content = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    request = METHODS["ModelInfer"].request(model_name="msmlp", raw_input_contents=[content])
    request.inputs.add(name="image", datatype="BYTES", shape=[len(files)])
    return request


def test_more_pixels_than_a_request_may_have(serve: Serve) -> None:
    large = encoded(np.zeros((1000, 2000, 3), np.uint8))
    with serve(max_request_pixels=3_000_000) as served:
        code, detail, _ = served.call.refused("ModelInfer", image_request(large, large))
        assert (code, "4000000 pixels" in detail) == ("INVALID_ARGUMENT", True)
        assert len(column(served.call("ModelInfer", image_request(large)), "exit")) == 1


def test_a_loop_that_stood_still_is_not_live(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "STILL_SECONDS", 0.3)
    with serve() as served:
        wait_until(lambda: served.call("ServerLive").live)  # a busy machine may stop for as long
        begun = threading.Event()
        assert served.service.engine._loop is not None
        served.service.engine._loop.call_soon_threadsafe(lambda: (begun.set(), time.sleep(1.0)))
        assert begun.wait(PATIENCE_SECONDS)
        assert not served.call("ServerLive").live
        wait_until(lambda: served.call("ServerLive").live)


def test_scores_that_are_no_numbers_and_an_engine_that_is_lost(serve: Serve) -> None:
    with serve() as served:
        collect = served.backend.collect

        def spoilt(handle: Any) -> Any:
            output = collect(handle)
            output.score[:] = np.nan
            return output

        served.backend.collect = spoilt
        for _ in range(3):
            assert served.call.refused("ModelInfer", infer_request(ONE))[0] == "UNAVAILABLE"
        wait_until(lambda: served.service.engine.down)
        assert served.call.refused("ModelInfer", infer_request(ONE))[0] == "UNAVAILABLE"
        assert not served.call("ServerReady").ready


def test_a_connection_without_calls_is_closed(serve: Serve) -> None:
    with serve(keep_alive_seconds=0.5) as served:
        address = ("127.0.0.1", served.service.settings.grpc_port)
        with socket.create_connection(address, timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            received = b""
            while more := connection.recv(1000):
                received += more
        assert received.startswith(bytes([0, 0])), "the server's settings, before it closes without a call"
