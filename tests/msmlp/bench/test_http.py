"""`msmlp bench http`: real runs at small size; what is counted is right, no speed is judged here."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from msmlp.bench.http import HttpOptions, bench_http, front_ends, ratios
from msmlp.bench.images import IMAGES_OF
from msmlp.model.errors import MsmlpError
from msmlp.service.service import build_service
from msmlp.service.settings import Settings
from tests.processes import Call
from tests.servers import serving


@pytest.mark.system  # it takes ten seconds or more
def test_servers_of_its_own_are_compared_and_ended(tiny_weights: Path) -> None:
    said: list[str] = []
    options = HttpOptions(weights=tiny_weights, connections=(2,), seconds=0.2, rounds=1)
    result = bench_http(options, said.append)
    json.dumps(result)
    runs = Counter((row["server"], row["body"]) for row in result["load"])
    servers = {row["server"] for row in result["load"]}
    assert {"null", "real"} <= servers
    assert runs == {(s, b): 1 for s in servers for b in IMAGES_OF}
    for row in result["load"]:
        assert row["statuses"].keys() == {"200"}, row
        assert sum(row["exit_share"].values()) == pytest.approx(1, abs=1e-3)
    speed = {(row["server"], row["body"]): row["requests_per_second"] for row in result["load"]}
    assert {ratio["body"] for ratio in result["ratios"]} == IMAGES_OF.keys()
    for ratio in result["ratios"]:
        real, null = (speed[server, ratio["body"]] for server in ("real", "null"))
        assert ratio["real_over_null"] == pytest.approx(real / null, abs=2e-3)
    assert {"stopped null", "stopped real"} < set(said)
    for line in said:
        if line.startswith("started"):
            with pytest.raises(httpx.ConnectError):
                httpx.get(line.split()[-1])


def test_two_front_ends_are_related_to_one_in_cpu_time_and_in_speed() -> None:
    def row(server: str, speed: float, cpu: float | None) -> dict[str, Any]:
        figures = {"requests_per_second": speed, "server_cpu_seconds_per_1000": cpu}
        return {"server": server, "body": "image", "connections": 8, **figures}

    load = [row("real", 400, 4.0), row("null", 1000, 0.4), row("null, 2 front ends", 1500, 0.5)]
    at = {"body": "image", "connections": 8}
    assert ratios(load) == [{**at, "real_over_null": 0.4}]
    assert front_ends(load) == [{**at, "cpu_two_over_one": 1.25, "speed_two_over_one": 1.5}]
    assert front_ends([load[1], row("null, 2 front ends", 0, None)])[0]["cpu_two_over_one"] is None
    assert front_ends(load[:2]) == [], "a service that has one front end only"


def test_forms_and_tensors_are_sent_over_few_connections() -> None:
    options = HttpOptions(connections=(1, 8, 128))
    assert {body: options.connections_of(body) for body in IMAGES_OF} == {
        "image": [1, 8, 128],
        "multipart-64": [1, 4],
        "oip-1024": [1, 2],
    }


def test_over_http_every_request_is_counted(tiny_weights: Path, cat_photo: bytes) -> None:
    with serving(build_service(Settings(weights=tiny_weights, device="cpu", engine="thread"))) as client:
        url = str(client.base_url)
        options = HttpOptions(
            url,
            files=(cat_photo, b"no picture"),
            connections=(1, 4),
            bodies=("image",),
            seconds=0.3,
            rounds=2,
        )
        result = bench_http(options)
        counted = metric(client, 'msmlp_requests_total{route="/classify",status="200"}')
    assert [row["connections"] for row in result["load"]] == [1, 4]
    assert {status for row in result["load"] for status in row["statuses"]} == {"200", "422"}
    warm_up = counted - sum(row["statuses"]["200"] for row in result["load"])
    assert 0 < warm_up < counted
    for row in result["load"]:
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert sum(row["exit_share"].values()) == pytest.approx(1, abs=1e-3)
        assert row["server_cpu_seconds_per_1000"] is None, "another's process is not known"
    assert result["ratios"] == []


def metric(client: httpx.Client, name: str) -> float:
    return next(float(line.split()[-1]) for line in client.get("/metrics").text.splitlines() if line.startswith(name))


def test_a_service_may_ask_for_a_key(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key-of-20-letters-")
    settings = Settings(weights=tiny_weights, device="cpu", engine="thread", api_keys_file=file)
    with serving(build_service(settings)) as client:
        options = HttpOptions(url=str(client.base_url), connections=(1,), seconds=0.2, rounds=1)
        with pytest.raises(MsmlpError, match=r"no valid key.*MSMLP_API_KEY"):
            bench_http(options)
        monkeypatch.setenv("MSMLP_API_KEY", "a-key-of-20-letters-")
        for row in bench_http(options)["load"]:
            assert row["statuses"].keys() == {"200"}, row


def test_where_nothing_went_well_there_is_no_latency_but_json(
    tiny_weights: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    with serving(build_service(Settings(weights=tiny_weights, device="cpu", engine="thread"))) as client:
        words = ["bench", "http", text, "--url", str(client.base_url), "--connections", "1", "--seconds", "0.1"]
        words += ["--bodies", "image", "--rounds", "1"]
        assert call(*words, "--json") == 0
        [row] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["load"]
        assert call(*words) == 0
        assert "p50 -, p95 -, p99 -, CPU - per 1,000, statuses {'422': " in capsys.readouterr().out
    assert [row[name] for name in ("p50_ms", "p95_ms", "p99_ms")] == [None] * 3
    assert row["statuses"].keys() == {"422"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--connections", "\xb2"], "'\xb2' is not valid; expected numbers from 1 to 1024"),
        (["--connections", "1,0"], "'1,0' is not valid; expected numbers from 1 to 1024"),
        (["--connections", ""], "'' is not valid; expected numbers from 1 to 1024"),
        (["--bodies", "text"], "'text' is not valid; expected a list of image, multipart-64, oip-1024"),
        (["--url", "http://[::1"], "'http://[::1' is not the address of a service"),
        (["--url", "foo"], "'foo' is not the address of a service"),
        (["--url", "http://127.0.0.1:9", "--weights", "w"], "a running service has its own"),
        (["nowhere.jpg"], "cannot read nowhere.jpg"),
    ],
)
def test_a_mistake_is_one_line(call: Call, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert call("bench", "http", *words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_service_that_is_not_there_is_said_to_be_so() -> None:
    with pytest.raises(MsmlpError, match="no service is ready at http"):
        bench_http(HttpOptions("http://127.0.0.1:9", connections=(1,), seconds=0.1))


def test_a_server_that_does_not_start_is_said_with_its_last_words(
    call: Call, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("bench", "http", "--weights", tmp_path, "--seconds", "0.1") == 1
    assert "the real server did not become ready; it said: msmlp: " in capsys.readouterr().err
