"""gRPC's server around a fake backend, and a client that sees all of a call, trailing metadata too."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from msmlp.service.grpc.messages import METHODS, SERVICE, InferParameter, ModelInferRequest
from msmlp.service.service import Service
from tests.certificates import CA
from tests.fakes import PATIENCE_SECONDS, FakeBackend
from tests.servers import fake_backend, fake_service, serving


class Caller:
    """Calls methods by their names; errors are grpc's own."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def start(self, name: str, request: Any, **how: Any) -> Any:
        """A call whose answer is waited for later; `how` is grpc's."""
        method = METHODS[name]
        call = self.channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=method.response.FromString,
        )
        return call.future(request, **{"timeout": PATIENCE_SECONDS, **how})

    def __call__(self, name: str, request: Any = None, **how: Any) -> Any:
        """A call to its end."""
        return self.start(name, METHODS[name].request() if request is None else request, **how).result()

    def refused(self, name: str, request: Any = None, **how: Any) -> tuple[str, str, dict[str, str]]:
        """Code, words and trailing metadata of a call that is refused."""
        with pytest.raises(grpc.RpcError) as raised:
            self(name, request, **how)
        error: Any = raised.value
        return error.code().name, error.details(), dict(error.trailing_metadata() or ())

    def stream(self, requests: Iterator[Any]) -> Any:
        """ModelStreamInfer: the responses as they come."""
        method = METHODS["ModelStreamInfer"]
        call = self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return call(requests, timeout=PATIENCE_SECONDS)


class Served:
    """A service on a fake backend, called over gRPC and HTTP."""

    def __init__(self, service: Service, backend: FakeBackend, call: Caller, http: Any) -> None:
        self.service, self.backend, self.call, self.http = service, backend, call, http

    def rows(self, name: str) -> set[str]:
        """What the metrics say of a method: its statuses."""
        lines = self.http.get("/metrics").text.splitlines()
        start = f'msmlp_requests_total{{route="grpc/{name}",status="'
        counted = [line for line in lines if line.startswith(start) and not line.endswith(" 0.0")]
        return {line.removeprefix(start).partition('"')[0] for line in counted}


Serve = Callable[..., Any]


@pytest.fixture
def serve(tiny_weights: Path) -> Serve:
    """A context manager: settings → `Served`; the client's connection outlives the server."""

    @contextmanager
    def served(**settings: Any) -> Iterator[Served]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        backend = fake_backend(capacity=settings.get("capacity", 1024))
        service = fake_service(tiny_weights, lambda: backend, grpc_port=port, **settings)
        address, options = f"127.0.0.1:{port}", [("grpc.max_send_message_length", -1)]
        trusting = grpc.ssl_channel_credentials(CA.cert_pem.bytes())
        if "ssl_certfile" in settings:
            channel = grpc.secure_channel(address, trusting, options)
        else:
            channel = grpc.insecure_channel(address, options)
        with (
            channel,
            serving(service) as http,
        ):
            grpc.channel_ready_future(channel).result(PATIENCE_SECONDS)
            yield Served(service, backend, Caller(channel), http)

    return served


def infer_request(pixels: NDArray[np.uint8], request_id: str = "", **parameters: Any) -> Any:
    """Pixels [n, H, W, 3] and options as a ModelInferRequest for their labels and exits."""
    message = ModelInferRequest(model_name="msmlp", id=request_id, raw_input_contents=[pixels.tobytes()])
    message.inputs.add(name="pixels", datatype="UINT8", shape=pixels.shape)
    for name in ("class_id", "exit"):
        message.outputs.add(name=name)
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in parameters.items():
        message.parameters[name].CopyFrom(InferParameter(**{kinds[type(value)]: value}))
    return message


def column(response: Any, name: str) -> list[int]:
    """An output of whole numbers."""
    [found] = [i for i, output in enumerate(response.outputs) if output.name == name]
    return np.frombuffer(response.raw_output_contents[found], dtype="<i4").tolist()
