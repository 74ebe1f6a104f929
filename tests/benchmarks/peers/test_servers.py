"""The FastAPI peer and our own server, really started, asked and paused."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from benchmarks.peers.measure import Entry, measure
from benchmarks.peers.prepare import PeersError, first_scores, half_threshold, right_answers, versions
from benchmarks.peers.servers import OURS, PEERS, Case, our_server, pause, peer_server, resume
from msmlp.bench.generator import offer
from msmlp.bench.images import thumbnails
from msmlp.bench.processes import Server, family
from tests.servers import wait_until

FASTAPI = next(peer for peer in PEERS if "2 processes" in peer.name)


def quiet(line: str) -> None:
    pass


@pytest.fixture
def case(tiny_weights: Path) -> Case:
    files = thumbnails(32)
    thresholds = (half_threshold(first_scores(tiny_weights, files)), 0.5)
    right = right_answers(tiny_weights, list(thresholds), files)
    return Case("cascade", tiny_weights, thresholds, tuple(files), tuple(right))


@pytest.fixture(params=[FASTAPI.name, OURS])
def entry(request: pytest.FixtureRequest, case: Case) -> Iterator[Entry]:
    started: AbstractContextManager[Server] = (
        our_server(case, quiet)
        if request.param == OURS
        else peer_server(FASTAPI, FASTAPI.start, case, sys.executable, quiet)
    )
    with started as server:
        pause(server)
        yield Entry(case, server)
        resume(server)


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_server_is_measured_answers_right_and_stands_still_otherwise(entry: Entry) -> None:
    said: list[str] = []
    (row,) = measure([entry], (4,), 2, 0.3, offer, lambda case: [], said.append)
    assert row["statuses"].keys() == {"200"}
    assert row["wrong"] == 0
    assert row["looked_at"] > 0
    assert len(row["exits"]) > 1
    assert row["server_cpu_seconds_per_1000"] > 0
    assert row["others_cpu"] >= 0
    assert len(row["rounds"]) == len(said) == 2
    assert entry.server.process is not None
    processes = list(family(entry.server.process))
    # A signal is taken when the process next runs.
    wait_until(lambda: all(state(process) == "T" for process in processes))


def test_torch_has_no_business_among_the_peers() -> None:
    with pytest.raises(PeersError, match="torch is in the peers' environment"):
        versions(sys.executable)
