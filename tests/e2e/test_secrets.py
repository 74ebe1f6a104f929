"""Keys stay secret: not in what a real `msmlp serve` logs at any level, traces, counts or answers, nor in a client."""

import base64
import json
import socket
from hashlib import sha256
from pathlib import Path

import grpc
import httpx
import pytest

import msmlp
from msmlp.model.errors import OptionError
from tests.chaos.harness import at_length
from tests.e2e.test_telemetry import collector
from tests.fakes import PATIENCE_SECONDS
from tests.processes import environment, msmlp_serve, run_msmlp

KEY, LIMITED, ADMIN, INVALID = "key-Zq8vN2xLr5", "key-limited-Ht3wB7", "key-admin-Pm4cX9yD", "key-invalid-Kd6uR1"
KEY += "-long-enough"
FILE_ONLY = "key-in-a-bad-line-Wj2s"
SECRETS = [KEY, LIMITED, ADMIN, INVALID, FILE_ONLY]


def forms(secret: str) -> list[str]:
    """How it could be written, some of its parts too."""
    digest = sha256(secret.encode())
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return [secret, secret[4:14], encoded[:16], digest.hexdigest()[:16], repr(digest.digest())[2:20]]


def assert_hidden(*texts: str) -> None:
    for text in texts:
        for secret in SECRETS:
            for form in forms(secret):
                assert form not in text


def spoken(url: str, *heads: str) -> str:
    """What the server says to bytes that may be no HTTP at all."""
    parts = httpx.URL(url)
    said = ""
    for head in heads:
        with socket.create_connection((parts.host, parts.port or 80), timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(head.encode("latin-1"))
            connection.shutdown(socket.SHUT_WR)
            while received := connection.recv(2**16):
                said += received.decode("latin-1")
    return said


def asked(url: str, photo: bytes) -> list[httpx.Response]:
    """Every key on every kind of route, as it should be sent and as it should not."""
    answers = []
    with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
        for key in (KEY, LIMITED, LIMITED, ADMIN, INVALID):
            for scheme in ("Bearer ", "Basic ", ""):
                headers = {"Authorization": scheme + key, "Content-Type": "image/jpeg"}
                for path in ("/classify", "/classify?policy=none", "/v2/models/msmlp/infer", "/admin/reload"):
                    answers.append(client.post(path, content=photo, headers=headers))
                for path in ("/model", "/metrics", "/docs", "/nowhere", "/readyz"):
                    answers.append(client.get(path, headers=headers))
    return answers


def called(address: str) -> str:
    """What gRPC says to them."""
    said = ""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
        for key in (KEY, LIMITED, INVALID):
            try:
                said += repr(call(b"", metadata=[("authorization", f"Bearer {key}")], timeout=PATIENCE_SECONDS))
            except grpc.RpcError as error:
                said += repr(error)
    return said


BROKEN_HEADS = [
    f"GET /model HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nBad Header {KEY}\r\n\r\n",
    f"GET /model HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer {KEY}\r\n\r\n",
    f"GET /model HTTP/1.1\r\nHost: x\r\nHost: y\r\nAuthorization: Bearer {KEY}\r\n\r\n",
    f"GET /model HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\x00\r\n\r\n",
    f"Authorization: Bearer {KEY}\r\n\r\n",
    f"GET /model HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {KEY}\r\nAuthorization: Bearer {KEY}\r\n\r\n",
]


@pytest.mark.system  # it takes ten seconds or more
@pytest.mark.parametrize("form", ["json", *at_length("text")])
def test_no_key_is_ever_shown(
    tiny_weights: Path, tmp_path: Path, cat_photo: bytes, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    keys, admins = tmp_path / "keys", tmp_path / "admins"
    keys.write_text(f"{KEY} name=shop\n{LIMITED} requests=0.0001\n")
    admins.write_text(ADMIN)
    options = ["--log-level", "debug", "--log-format", form, "--access-log", "--traces", "--grpc-port", "0"]
    options += ["--api-keys-file", str(keys), "--admin-keys-file", str(admins), "--metrics-open"]
    with collector() as takes:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{takes.server_port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with msmlp_serve(tiny_weights, "--engine", "process", "--frontends", "2", *options) as served:
            served.wait_until_ready(2)
            answers = asked(served.url, cat_photo)
            shown = [called(served.grpc), spoken(served.url, *BROKEN_HEADS)]
            metrics = httpx.get(f"{served.url}/metrics", timeout=PATIENCE_SECONDS).text
            for line in (f"{FILE_ONLY} {KEY}", f"{FILE_ONLY} pixels={KEY}", f"{FILE_ONLY} name=<{KEY}>"):
                keys.write_text(line)
                served.wait_for(f"line 1: {'expected KEY' if ' key' in line else line.split()[1].partition('=')[0]}")
            served.process.terminate()
            served.end()
            log = served.log
        traces = "".join(map(repr, takes.taken)) + str(takes.paths)
    assert {answer.status_code for answer in answers} >= {200, 401, 404, 422, 429}
    assert "by shop" in log or '"key": "shop"' in log, "what is named is named"
    assert "inference" in traces or "POST /classify" in traces
    assert "msmlp_shed_total" in metrics
    assert_hidden(log, metrics, traces, *shown)
    assert_hidden(*(answer.text + repr(answer.headers) for answer in answers))


def test_a_bad_file_shows_none_when_nothing_starts(tiny_weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for line in (f"{FILE_ONLY} {KEY}", f"{KEY}\n{KEY}", f"{KEY}-\u00e4", f"{KEY} requests={FILE_ONLY}"):
        file.write_text(line)
        done = run_msmlp("serve", "--weights", tiny_weights, "--port", "0", "--api-keys-file", file)
        assert done.returncode == 2
        assert done.stderr.startswith(f"msmlp: --api-keys-file: {file}: line ")
        assert_hidden(done.stderr, done.stdout)


def test_a_client_shows_none(tiny_weights: Path, tmp_path: Path, cat_photo: bytes) -> None:
    keys, photo = tmp_path / "keys", tmp_path / "cat.jpg"
    keys.write_text(KEY)
    photo.write_bytes(cat_photo)
    with msmlp_serve(tiny_weights, "--frontends", "1", "--api-keys-file", str(keys)) as served:
        served.wait_for("ready: ")
        for key, status in {KEY: 0, INVALID: 2}.items():
            done = run_msmlp("classify", photo, "--url", served.url, "--json", MSMLP_API_KEY=key)
            assert done.returncode == status, done.stderr
            assert_hidden(done.stderr, done.stdout)
            if status == 0:
                assert json.loads(done.stdout)["results"]
        assert "MSMLP_API_KEY" in done.stderr
        url = served.url
    with msmlp.Client(url, api_key=KEY, retries=0) as client:
        with pytest.raises(msmlp.ServiceError) as gone:
            client.model()
        assert_hidden(repr(client), repr(vars(client)), repr(client._http.headers), repr(gone.value), str(gone.value))
    with pytest.raises(OptionError) as refused:
        msmlp.Client(url, api_key=f"{KEY}\n")
    assert_hidden(str(refused.value), repr(refused.value))


def test_a_key_in_the_environment_is_no_setting(tiny_weights: Path) -> None:
    """As it is where a client and a service share one."""
    assert "MSMLP_API_KEY" not in environment()
    done = run_msmlp("info", "--weights", tiny_weights, MSMLP_API_KEY=KEY)
    assert done.returncode == 0
    done = run_msmlp("serve", "--weights", tiny_weights, "--port", "70000", MSMLP_API_KEY=KEY)
    assert "--port" in done.stderr
    assert_hidden(done.stderr)
