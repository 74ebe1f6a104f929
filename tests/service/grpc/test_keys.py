"""Keys over gRPC: what needs one, how it is refused, limits, and a key that is withdrawn while its stream is open."""

from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton

from msmlp.service.grpc.messages import METHODS
from tests.fakes import PATIENCE_SECONDS, pictures
from tests.service.grpc.conftest import Serve, column, infer_request
from tests.service.grpc.test_streams import Requests

KEY, WRONG = "a-key-of-20-letters-", "Bearer an-invalid-key-here"
NONE = "no valid key; expected authorization: "
ONE = pictures(1, 1.0, label=3, size=32)


def bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(KEY)
    return path


def test_every_method_but_probes_needs_a_key(serve: Serve, file: Path) -> None:
    with serve(api_keys_file=file, metrics_open=True) as served:
        for name in METHODS.keys() - {"ModelStreamInfer"}:
            request = infer_request(ONE) if name == "ModelInfer" else METHODS[name].request()
            if hasattr(request, "name"):
                request.name = "msmlp"
            if name in ("ServerLive", "ServerReady"):
                served.call(name, request)
                continue
            for metadata in (None, [("authorization", WRONG)], [("authorization", KEY)], [("authorization-bin", b"x")]):
                code, detail, _ = served.call.refused(name, request, metadata=metadata)
                assert (code, detail) == ("UNAUTHENTICATED", f"{NONE}Bearer KEY")
            served.call(name, request, metadata=bearer(KEY))
            assert served.rows(name) == {"200", "401"}


def test_a_real_client_presents_one(serve: Serve, file: Path) -> None:
    with (
        serve(api_keys_file=file) as served,
        triton.InferenceServerClient(f"127.0.0.1:{served.service.settings.grpc_port}") as client,
    ):
        tensor = triton.InferInput("pixels", [1, 32, 32, 3], "UINT8")
        tensor.set_data_from_numpy(ONE)
        found = client.infer("msmlp", [tensor], headers={"authorization": f"Bearer {KEY}"})
        assert found.as_numpy("class_id").tolist() == [3]


def test_without_a_key_a_message_is_not_read(serve: Serve, file: Path) -> None:
    with serve(api_keys_file=file, metrics_open=True) as served:
        call = served.call.channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        never = Requests()
        with pytest.raises(grpc.RpcError) as raised:
            call(iter(never), timeout=PATIENCE_SECONDS)
        never.send(None)
        error: Any = raised.value
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED


def test_limits_count_calls_and_say_when_to_come_again(serve: Serve, file: Path) -> None:
    file.write_text(f"{KEY} requests=0.0001")
    with serve(api_keys_file=file, metrics_open=True) as served:
        served.call("ServerReady", metadata=bearer(KEY))
        served.call("ModelInfer", infer_request(ONE), metadata=bearer(KEY))
        code, detail, metadata = served.call.refused("ModelInfer", infer_request(ONE), metadata=bearer(KEY))
        assert (code, detail) == ("RESOURCE_EXHAUSTED", "this key may have 0.0001 requests a second")
        assert 9_000_000 < int(metadata["retry-pushback-ms"]) <= 10_000_000
        assert 'msmlp_shed_total{reason="key"} 1.0' in served.http.get("/metrics").text


def test_pixels_count(serve: Serve, file: Path) -> None:
    file.write_text(f"{KEY} pixels=1")
    with serve(api_keys_file=file) as served:
        served.call("ModelInfer", infer_request(ONE), metadata=bearer(KEY))
        _, detail, metadata = served.call.refused("ModelInfer", infer_request(ONE), metadata=bearer(KEY))
        assert detail == "this key may have 1 pixels a second"
        assert 900_000 < int(metadata["retry-pushback-ms"]) < 1_024_000


def stream(served: Any, requests: Any, key: str) -> Any:
    method = METHODS["ModelStreamInfer"]
    call = served.call.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )
    return call(requests, timeout=PATIENCE_SECONDS, metadata=bearer(key))


def test_a_stream_needs_a_key_when_it_is_opened(serve: Serve, file: Path) -> None:
    with serve(api_keys_file=file, metrics_open=True) as served:
        never = Requests()
        with pytest.raises(grpc.RpcError) as raised:
            list(stream(served, iter(never), "not-the-right-key"))
        never.send(None)
        error: Any = raised.value
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAUTHENTICATED, f"{NONE}Bearer KEY")
        assert served.rows("ModelStreamInfer") == {"401"}


def test_each_request_of_a_stream_counts(serve: Serve, file: Path) -> None:
    file.write_text(f"{KEY} pixels=1")
    with serve(api_keys_file=file) as served:
        sent = Requests(infer_request(ONE, "a"))
        responses = stream(served, iter(sent), KEY)
        assert column(next(responses).infer_response, "class_id") == [3]
        sent.send(infer_request(ONE, "b"))
        assert next(responses).error_message == "this key may have 1 pixels a second"
        sent.send(None)
        assert list(responses) == []


def test_opening_a_stream_counts_nothing(serve: Serve, file: Path) -> None:
    file.write_text(f"{KEY} requests=0.0001")
    with serve(api_keys_file=file) as served:
        for _ in range(2):
            assert list(stream(served, iter(()), KEY)) == []
        responses = list(stream(served, iter([infer_request(ONE, "a"), infer_request(ONE, "b")]), KEY))
        assert column(responses[0].infer_response, "class_id") == [3]
        assert [each.error_message for each in responses] == ["", "this key may have 0.0001 requests a second"]


def test_a_key_that_is_withdrawn_opens_nothing_on_a_stream_that_is_open(serve: Serve, file: Path) -> None:
    with serve(api_keys_file=file) as served:
        sent = Requests(infer_request(ONE, "a"))
        responses = stream(served, iter(sent), KEY)
        assert not next(responses).error_message
        keys = served.service.keys.api
        file.write_text("another-key-of-them+")
        assert [keys.look(), keys.look()] == [False, True]
        sent.send(infer_request(ONE, "b"))
        assert next(responses).error_message == f"{NONE}Bearer KEY"
        sent.send(None)
        assert list(responses) == []
