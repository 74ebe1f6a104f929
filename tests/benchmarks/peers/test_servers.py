"""The FastAPI peer, the least server and our own, really started, asked and paused."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from benchmarks.peers import bare
from benchmarks.peers.bare import Bare
from benchmarks.peers.measure import Entry, Row, measure, medians
from benchmarks.peers.prepare import PeersError, first_scores, half_threshold, right_answers, versions
from benchmarks.peers.servers import LEAST, OURS, PEERS, Case, Peer, our_server, pause, peer_server, resume
from msmlp.bench.generator import Load, Seen, offer
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


@pytest.fixture(params=[FASTAPI, LEAST, None], ids=lambda peer: peer.name if peer else OURS)
def entry(request: pytest.FixtureRequest, case: Case) -> Iterator[Entry]:
    peer: Peer | None = request.param
    started: AbstractContextManager[Server] = (
        our_server(case, quiet) if peer is None else peer_server(peer, peer.start, case, sys.executable, quiet)
    )
    with started as server:
        pause(server)
        yield Entry(case, server)
        resume(server)


@pytest.fixture
def costs_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bare]:
    """Without the bounds, which search for the fastest way."""
    monkeypatch.setattr(bare, "COST_SECONDS", 0.01)
    monkeypatch.setattr(Bare, "rows", lambda self, case: list[Row]())
    with ThreadPoolExecutor(2) as pool:
        yield Bare(pool, pool, 0.1)


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_server_is_measured_answers_right_and_stands_still_otherwise(entry: Entry, costs_only: Bare) -> None:
    said: list[str] = []
    runs = [run for part in measure([entry], (4,), 2, 0.3, offer, costs_only, said.append) for run in part]
    assert [run["round"] for run in runs] == [0, 1]
    (row,) = medians(runs)
    assert row["statuses"].keys() == {"200"}
    assert row["wrong"] == row["degraded"] == 0
    assert row["looked_at"] == row["statuses"]["200"], "every answer is looked at"
    assert sum(row["exits"].values()) == row["looked_at"]
    assert len(row["exits"]) > 1
    assert sum(images for key, images in row["batches"].items() if key.startswith("1:")) == row["looked_at"]
    for run in runs:
        parts = run["compute_seconds_per_1000"] + run["outside_seconds_per_1000"]
        assert run["server_cpu_seconds_per_1000"] == pytest.approx(parts)
    assert row["server_cpu_seconds_per_1000"] > 0
    assert row["others_cpu"] >= 0
    assert len(row["rounds"]) == len(said) == 2
    assert entry.server.process is not None
    processes = list(family(entry.server.process))
    assert row["processes"] == len(processes)
    # A signal is taken when the process next runs.
    wait_until(lambda: all(state(process) == "T" for process in processes))


def test_a_server_that_does_not_say_how_it_batches_has_no_time_outside_compute(case: Case, costs_only: Bare) -> None:
    kept = []

    def send(load: Load, seen: Seen) -> Seen:
        kept.append(offer(load, seen))
        return kept[-1]

    with peer_server(LEAST, LEAST.start, case, sys.executable, quiet) as server:
        entry = Entry(case, server, batches=True)
        [[run]] = measure([entry], (4,), 1, 0.2, send, costs_only, quiet)
        resume(server)  # or it would not hear that it is to end
    asked, pictures = kept[-1].asked, len(case.files)
    assert sorted(asked) == sorted(n % pictures for n in range(len(asked))), "connections share the pictures in turn"
    assert run["server_cpu_seconds_per_1000"] is not None
    assert run["compute_seconds_per_1000"] is run["outside_seconds_per_1000"] is None


def test_torch_has_no_business_among_the_peers() -> None:
    with pytest.raises(PeersError, match="torch is in the peers' environment"):
        versions(sys.executable)
