"""Medians, goals and the page, from rows by hand."""

from collections import Counter
from typing import Any

import pytest

from benchmarks.peers.bare import BARE, DECODED
from benchmarks.peers.goals import CASCADE, PLAIN, goals
from benchmarks.peers.page import page
from benchmarks.peers.rounds import median, nearest
from benchmarks.peers.servers import OURS, PEERS

COUNTS = (1, 32)
LITSERVE, ONE, TWO = (peer.name for peer in PEERS)


def row(case: str, server: str, connections: int | None, speed: float, p99: float | None = None) -> dict[str, Any]:
    found = {"case": case, "server": server, "connections": connections, "requests_per_second": speed}
    if connections is None:
        return {**found, "way": "batches of 8"}
    counted = {"statuses": {"200": 100}, "looked_at": 10, "wrong": 0, "exits": {"1": 6, "2": 4}}
    return {
        **found,
        "p99_ms": p99,
        "server_cpu_seconds_per_1000": 2.0,
        "generator_cpu": 0.1,
        "others_cpu": 0.25,
        **counted,
    }


def rows(ours: float = 900.0, p99: float = 5.0) -> list[dict[str, Any]]:
    found = []
    for case in (PLAIN, CASCADE):
        found += [row(case, BARE, None, 1000), row(case, DECODED, None, 950)]
        for count in COUNTS:
            found += [row(case, OURS, count, ours, p99), row(case, LITSERVE, count, 300, 10)]
            found += [row(case, ONE, count, 600, 40), row(case, TWO, count, 500, 30)]
    return found


def test_rounds_become_medians_sums_and_each_round_s_speed() -> None:
    three = [{**row(PLAIN, OURS, 8, speed, p99), "wrong": 1} for speed, p99 in ((10, 4.0), (30, None), (20, 6.0))]
    for each in three:
        each |= {name: Counter(each[name]) for name in ("exits", "statuses")}
    whole = median(three)
    assert (whole["requests_per_second"], whole["p99_ms"], whole["connections"]) == (20, 5.0, 8)
    assert (whole["looked_at"], whole["wrong"], whole["exits"]) == (30, 3, {"1": 18, "2": 12})
    assert whole["rounds"] == [10, 30, 20]


@pytest.mark.parametrize(("ours", "met"), [(900.0, [True, True, False]), (899.0, [False, False, False])])
def test_speed_is_compared_with_bare_and_with_the_fastest_peer(ours: float, met: list[bool]) -> None:
    found = goals(rows(ours), 32)[:3]
    assert [goal["met"] for goal in found] == met
    assert [goal["reached"] for goal in found] == pytest.approx([ours / 1000, ours / 600, ours / 600], abs=1e-3)


def test_p99_is_compared_with_the_lowest_of_any_peer_at_each_load() -> None:
    for p99, met in ((5.0, True), (5.1, False)):
        found = goals(rows(p99=p99), 32)[3:]
        assert len(found) == 2 * len(COUNTS)
        assert {goal["met"] for goal in found} == {met}
        assert {goal["reached"] for goal in found} == {p99 / 10}


def test_what_was_not_measured_is_not_met() -> None:
    found = goals([each for each in rows() if each["server"] == OURS], 32)
    assert {(goal["reached"], goal["met"]) for goal in found} == {(None, False)}


def test_the_load_beside_bare_is_the_one_next_to_32() -> None:
    assert nearest((1, 8, 32, 128)) == 32
    assert nearest((1, 16, 128)) == 16


def document(found: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"cpu": "a CPU", "cores": 2, "cores_of_machine": 4, "python": "3.11.7", "date": "2026-11-26"}
    nets = {PLAIN: {"gflops": [0.0766], "thresholds": []}, CASCADE: {"gflops": [0.01, 0.07], "thresholds": [0.5]}}
    tried = [{"settings": PEERS[0].start, "requests_per_second": 300.0}] * 9
    return {
        "note": "A word of who ran it.",
        "machine": {**machine, "load_average_before": 1.5},
        "packages": {"litserve": "0.2.19"},
        "options": {"connections": COUNTS, "rounds": 3, "seconds": 2.0},
        "nets": nets,
        "settings": [{"case": PLAIN, "server": LITSERVE, "best": PEERS[0].start, "tried": tried}],
        "rows": found,
        "goals": goals(found, 32),
        "minutes": 9.5,
    }


def test_the_page_has_every_server_goal_and_setting() -> None:
    lines = page(document(rows())).splitlines()
    assert f"| {OURS} | 900 / 5.0 / 2.00 | 900 / 5.0 / 2.00 |" in lines
    assert f"| {ONE} | 600 / 40.0 / 2.00 | 600 / 40.0 / 2.00 |" in lines
    goal = f"| {CASCADE}, 32 connections: requests/s over the best peer | at least 3 | 1.50 | missed |"
    assert goal in lines
    assert sum(line.endswith("| met |") for line in lines) == 6
    assert any("Of 160 answers looked at 0 were wrong" in line for line in lines)
    assert "A word of who ran it." in lines
    assert any("took 0.25 cores (median)" in line for line in lines)
    assert any(line.startswith("Left at stage 1") and f"{OURS} 60.0 %" in line for line in lines)
    assert any(line.startswith(f"| {PLAIN} | {LITSERVE} | workers 1, threads 1") for line in lines)
    assert "Not answered with 200, or wrong:" not in lines


def test_the_page_names_what_failed_and_what_was_wrong() -> None:
    found = rows()
    place = next(n for n, each in enumerate(found) if (each["server"], each["connections"]) == (TWO, 32))
    found[place] = {**found[place], "statuses": {"200": 90, "503": 10}, "wrong": 2}
    lines = page(document(found)).splitlines()
    assert f"- {TWO}, 32 connections: 10 503, 2 wrong" in lines


def test_a_server_without_an_answer_is_on_the_page() -> None:
    found = rows()
    for each in found:
        if each["server"] == LITSERVE:
            each.update(requests_per_second=0.0, p99_ms=None, server_cpu_seconds_per_1000=None, exits={})
    text = page(document(found))
    assert f"| {LITSERVE} | 0 / - / - | 0 / - / - |" in text
    assert f"{LITSERVE}: no answer" in text
