"""Arrivals at random times, against a server that answers all."""

from functools import partial

from benchmarks.open_loop import open_loop
from msmlp.bench.generator import Load, offer
from tests.msmlp.bench.test_generator import answering, requests, well


def test_an_open_loop_sends_what_is_due_whatever_comes_back() -> None:
    loop = partial(open_loop, rate=200.0, seed=1)
    with answering(well) as (url, read):
        seen = offer(Load(url, requests(url), 1, 0.2), loop=loop)
    assert sum(seen.statuses.values()) == len(read)
    # The same seed gives the same arrivals.
    with answering(well) as (url, again):
        offer(Load(url, requests(url), 1, 0.2), loop=loop)
    assert len(again) == len(read) > 0
