"""TLS and the port for metrics, by real processes: what clients and operators see, and what disturbs nobody."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import tritonclient.grpc as triton

from msmlp.service.settings import DEFAULT_WEIGHTS
from tests.certificates import CA, Files, issue, secured, trusting
from tests.e2e.test_frontends import ESTABLISHED, alive, front_ends, has_socket, sockets
from tests.fakes import PATIENCE_SECONDS
from tests.processes import Served, environment, msmlp_serve, run_msmlp
from tests.servers import wait_until

ROOT = Path(__file__).resolve().parents[2]
CAT = ROOT / "examples" / "cat.jpg"
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
FAILED = "msmlp_tls_handshakes_failed_total"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return issue(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def served(files: Files, _no_settings_from_outside: None) -> Iterator[Served]:
    options = "--frontends", "2", "--engine", "inline", "--grpc-port", "0", "--metrics-port", "0", "--head-seconds", "2"
    with msmlp_serve(DEFAULT_WEIGHTS, *files.options, *options) as served:
        served.wait_until_ready(2)
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, verify=trusting(), timeout=PATIENCE_SECONDS) as client:
        yield client


def plain(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=PATIENCE_SECONDS)


def serial(served: Served) -> str:
    """Of the certificate that new connections are shown."""
    with secured(plain(served)) as connection:
        shown = connection.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


def received(connection: socket.socket) -> bytes:
    found = b""
    while more := connection.recv(2**16):
        found += more
    return found


def test_clients_that_know_the_certificate_are_answered(served: Served, client: httpx.Client) -> None:
    assert served.url.startswith("https://")
    for _ in range(3):  # on a connection that is kept
        answer = client.post("/classify", content=CAT.read_bytes())
        assert answer.json()["results"][0]["label"]
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"


def test_who_speaks_http_to_it_is_closed_and_counted(served: Served) -> None:
    before = served.metric(FAILED)
    with plain(served) as connection:
        connection.sendall(LIVE)
        assert received(connection) == b""
    wait_until(lambda: served.metric(FAILED) == before + 1)
    served.wait_for("INFO msmlp.tls: a TLS handshake failed: http request")
    assert "Traceback" not in served.log


def test_who_says_nothing_is_closed_after_head_seconds_and_counted(served: Served) -> None:
    before = served.metric(FAILED)
    with plain(served) as connection:
        assert received(connection) == b""
    wait_until(lambda: served.metric(FAILED) == before + 1)


@pytest.mark.parametrize(
    ("first", "status"), [(b"NONSENSE\r\n\r\n", 400), (POST % 10**9, 413)], ids=["no HTTP", "too large a body"]
)
def test_a_client_that_still_sends_reads_why_it_is_refused(served: Served, first: bytes, status: int) -> None:
    with secured(plain(served)) as connection:
        connection.sendall(first)
        for _ in range(40):
            connection.sendall(bytes(2**17))
        assert connection.recv(2**16).startswith(b"HTTP/1.1 %d " % status)


def test_a_large_body_comes_in_whole(client: httpx.Client) -> None:
    answer = client.post("/classify", content=CAT.read_bytes() + bytes(2**25), headers={"Content-Type": "image/jpeg"})
    assert answer.json()["results"][0]["label"]


# The port for metrics.


def test_the_metrics_port_has_three_paths_without_tls(served: Served, client: httpx.Client) -> None:
    with httpx.Client(base_url=served.metrics, timeout=PATIENCE_SECONDS) as inside:
        statuses = {
            path: inside.get(path).status_code for path in ("/livez", "/readyz", "/metrics", "/", "/model", "/v2")
        }
        assert statuses == {"/livez": 200, "/readyz": 200, "/metrics": 200, "/": 404, "/model": 404, "/v2": 404}
        refused = inside.post("/classify", content=CAT.read_bytes())
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
        assert refused.json()["detail"] == "no such path; this port has /livez, /metrics, /readyz"
        answer = inside.get("/metrics")
        assert "msmlp_requests_total" in answer.text
        assert "Strict-Transport-Security" not in answer.headers
    assert client.get("/metrics").status_code == 200


def test_the_metrics_port_needs_no_key_and_has_no_admin(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("abcdefghijklmnopqrst\n")
    options = "--api-keys-file", str(keys), "--admin-keys-file", str(keys), "--metrics-port", "0", "--frontends", "1"
    with msmlp_serve(DEFAULT_WEIGHTS, *options) as served:
        served.wait_for("ready: ")
        wait_until(lambda: httpx.get(f"{served.metrics}/readyz").status_code == 200)
        assert httpx.get(f"{served.url}/metrics").status_code == 401
        assert httpx.get(f"{served.metrics}/metrics").status_code == 200
        known = {"Authorization": "Bearer abcdefghijklmnopqrst"}
        assert httpx.get(f"{served.url}/metrics", headers=known).status_code == 200
        assert httpx.post(f"{served.metrics}/admin/reload", headers=known).status_code == 404


def test_tls_to_the_metrics_port_is_refused(served: Served) -> None:
    address = "127.0.0.1", int(served.metrics.rpartition(":")[2])
    with socket.create_connection(address, PATIENCE_SECONDS) as connection, pytest.raises(ssl.SSLError):
        secured(connection)


# gRPC.


def test_grpc_comes_over_tls_alone(served: Served) -> None:
    root = CA.cert_pem.bytes()
    with triton.InferenceServerClient(
        served.grpc, ssl=True, creds=grpc.ssl_channel_credentials(root_certificates=root)
    ) as secure:
        assert secure.is_server_ready(client_timeout=PATIENCE_SECONDS)
    with grpc.insecure_channel(served.grpc) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=PATIENCE_SECONDS)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "ssl_transport_security" not in served.log


# Clients of ours, and the container's health check.


def test_our_client_trusts_what_the_environment_says(served: Served, tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    CA.cert_pem.write_to_path(str(root))
    done = run_msmlp("classify", CAT, "--url", served.url, "--json", SSL_CERT_FILE=str(root))
    assert (done.returncode, done.stderr) == (0, "")
    refused = run_msmlp("classify", CAT, "--url", served.url, SSL_CERT_FILE="")
    assert refused.returncode == 1
    assert "certificate verify failed" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_health_check_follows_the_settings(served: Served, files: Files) -> None:
    def status(**settings: str) -> int:
        check = [sys.executable, str(ROOT / "docker" / "healthy.py")]
        return subprocess.run(check, env=environment(**settings), timeout=PATIENCE_SECONDS, check=False).returncode

    port, metrics_port = served.url.rpartition(":")[2], served.metrics.rpartition(":")[2]
    assert status(MSMLP_PORT=port, MSMLP_SSL_CERTFILE=str(files.chain)) == 0
    assert status(MSMLP_PORT=port, MSMLP_SSL_CERTFILE=str(files.chain), MSMLP_METRICS_PORT=metrics_port) == 0
    assert status(MSMLP_PORT=port) == 1


# Connections without a handshake, and the end.


@pytest.mark.system  # it takes ten seconds or more
def test_busy_clients_are_spread_again_after_a_front_end_was_killed(files: Files) -> None:
    """A connection over TLS cannot move: an answer says that it is the last there."""
    done, answers = threading.Event(), list[int | None]()

    def ask() -> None:
        with httpx.Client(base_url=served.url, verify=trusting(), timeout=PATIENCE_SECONDS) as client:
            while not done.is_set():
                try:
                    answers.append(client.post("/classify", content=CAT.read_bytes()).status_code)
                except httpx.TransportError:
                    answers.append(None)

    def spread() -> list[int]:
        open_now = sockets(served.url, ESTABLISHED)
        return [sum(has_socket(pid, inode) for inode in open_now) for pid in front_ends(served)]

    with msmlp_serve(DEFAULT_WEIGHTS, *files.options, "--frontends", "2", "--engine", "inline") as served:
        served.wait_until_ready(2)
        threads = [threading.Thread(target=ask) for _ in range(8)]
        try:
            for thread in threads:
                thread.start()
            wait_until(lambda: spread() == [4, 4])
            killed = min(front_ends(served))
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: not alive({killed}))
            wait_until(lambda: sorted(spread()) in ([3, 5], [4, 4]))
        finally:
            done.set()
            for thread in threads:
                thread.join()
    assert answers.count(200) + answers.count(None) == len(answers)
    assert answers.count(None) <= 8, "those of the killed one, and of others none"


def test_silent_connections_keep_nobody_out(files: Files) -> None:
    options = "--frontends", "1", "--max-connections", "4", "--head-seconds", "60"
    with msmlp_serve(DEFAULT_WEIGHTS, *files.options, *options) as served:
        served.wait_until_ready()
        silent = [plain(served) for _ in range(12)]
        with httpx.Client(base_url=served.url, verify=trusting(), timeout=PATIENCE_SECONDS) as client:
            assert client.post("/classify", content=CAT.read_bytes()).status_code == 200
        assert received(silent[0]) == b"", "the oldest made room"
        for each in silent:
            each.close()


@pytest.mark.system  # it takes ten seconds or more
def test_a_connection_that_nobody_reads_does_not_hold_up_the_end(files: Files) -> None:
    with msmlp_serve(DEFAULT_WEIGHTS, *files.options, "--frontends", "1", "--drain-seconds", "0") as served:
        served.wait_until_ready()
        with secured(plain(served)) as idle, plain(served):
            idle.sendall(LIVE)
            assert idle.recv(2**16).startswith(b"HTTP/1.1 200")
            served.process.send_signal(signal.SIGTERM)
            assert served.end() == 0
        assert "stopped; every request was answered" in served.log
        assert "Traceback" not in served.log


def test_a_reload_reads_renewed_files_and_loses_no_request(tmp_path: Path) -> None:
    with msmlp_serve(DEFAULT_WEIGHTS, *issue(tmp_path).options, "--frontends", "1") as served:
        served.wait_until_ready()
        first, over, statuses = serial(served), threading.Event(), list[int]()

        def ask() -> None:
            with httpx.Client(base_url=served.url, verify=trusting(), timeout=PATIENCE_SECONDS) as client:
                while not over.is_set():
                    statuses.append(client.get("/livez").status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        issue(tmp_path)
        served.process.send_signal(signal.SIGHUP)
        try:
            served.wait_for("loaded in")
            assert serial(served) != first
        finally:
            over.set()
            asking.join()
        assert set(statuses) == {200}
        assert "Traceback" not in served.log


@pytest.mark.system  # it takes ten seconds or more
def test_a_handshake_that_a_reload_comes_into_brings_a_request(files: Files) -> None:
    with msmlp_serve(DEFAULT_WEIGHTS, *files.options, "--frontends", "1") as served:
        served.wait_until_ready()
        old = front_ends(served)
        with plain(served) as connection:
            served.metric(FAILED)  # so the connection before is with the front end
            served.process.send_signal(signal.SIGHUP)
            served.wait_for("loaded in")
            time.sleep(0.5)  # the old front end has nothing else
            with secured(connection) as secure:
                secure.sendall(LIVE)
                answer = received(secure)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        wait_until(lambda: not alive(old))


# Settings that do not fit.


def test_what_does_not_fit_is_said_before_anything_starts(files: Files) -> None:
    for options, said in [
        (("--ssl-certfile", files.chain), "--ssl-keyfile: required together with --ssl-certfile"),
        (("--ssl-certfile", files.key, "--ssl-keyfile", files.key), "--ssl-certfile: .*key.pem holds no certificate"),
        (("--port", "8000", "--metrics-port", "8000"), "--metrics-port: 8000 is already used by --port; "),
        (("--cors-origins", "shop.example"), "--cors-origins: "),
    ]:
        done = run_msmlp("serve", *options)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert re.search(said, line), line
