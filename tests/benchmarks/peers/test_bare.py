"""What the graphs cost by themselves."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.peers import bare
from benchmarks.peers.bare import ALONE, BARE, BATCHES, DECODED, Bare, Costs, Way, batch_key
from benchmarks.peers.prepare import right_answers
from benchmarks.peers.servers import Case
from msmlp.bench.images import thumbnails


def test_compute_is_by_stage_and_batch_size_and_interpolated_between_sizes() -> None:
    costs = Costs((1, 4), ((8.0, 2.0), (40.0, 10.0)))
    counted = Counter({batch_key(1, 1): 1, batch_key(1, 2): 10, batch_key(2, 4): 2, batch_key(2, 64): 1})
    assert costs.of(counted) == 1 * 8 + 10 * 6 + 2 * 10 + 1 * 10


@pytest.mark.system  # it takes ten seconds or more
def test_every_stage_has_a_cost_at_every_batch_size_and_bounds_say_how(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COST_SECONDS", "CHOOSING_SECONDS", "WARM_SECONDS"):
        monkeypatch.setattr(bare, name, 0.01)
    batches_of_three = Way(3, 2, 1, False)
    monkeypatch.setattr(bare, "ways", lambda cores: [batches_of_three])
    files = tuple(thumbnails(32)[:5])  # not a multiple of any batch
    case = Case("cascade", tiny_weights, (0.5, 0.5), files, tuple(right_answers(tiny_weights, (0.5, 0.5), files)))
    with ThreadPoolExecutor(2) as pool:
        measured = Bare(pool, pool, 0.02)
        costs, rows = measured.costs(case), measured.rows(case)
    assert [len(each) for each in costs.seconds] == [len(BATCHES)] * 3
    assert all(second > 0 for each in costs.seconds for second in each)
    assert [row["server"] for row in rows] == [BARE, DECODED, ALONE]
    assert [row["way"] for row in rows[:2]] == [str(batches_of_three)] * 2
    assert rows[2]["way"].startswith("batches of 1, ")
    assert all(row["requests_per_second"] > 0 for row in rows)
