"""Medians and the page, from rows by hand."""

from collections import Counter
from typing import Any

from benchmarks.peers.measure import BARE, DECODED, median, nearest
from benchmarks.peers.page import page
from benchmarks.peers.servers import CASCADE, OURS, PEERS, PLAIN

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


def rows() -> list[dict[str, Any]]:
    found = []
    for case in (PLAIN, CASCADE):
        found += [row(case, BARE, None, 1000), row(case, DECODED, None, 950)]
        for count in COUNTS:
            found += [row(case, OURS, count, 900, 5), row(case, LITSERVE, count, 300, 10)]
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
        "minutes": 9.5,
    }


def test_the_page_has_every_server_and_setting() -> None:
    lines = page(document(rows())).splitlines()
    assert f"| {OURS} | 900 / 5.0 / 2.00 | 900 / 5.0 / 2.00 |" in lines
    assert f"| {ONE} | 600 / 40.0 / 2.00 | 600 / 40.0 / 2.00 |" in lines
    assert any("Of 160 sampled answers 0 were wrong" in line for line in lines)
    assert "A word of who ran it." in lines
    assert any("took 0.25 cores (median)" in line for line in lines)
    assert any(line.startswith("Share of sampled answers") and f"{OURS} 60.0 %" in line for line in lines)
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
