"""Medians, goals and the page, from rows by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers.bare import ALONE, BARE, DECODED
from benchmarks.peers.goals import BEST, GOALS, SPEED, faults, goals
from benchmarks.peers.measure import median, nearest
from benchmarks.peers.page import page
from benchmarks.peers.servers import CASCADE, LEAST, OURS, OURS_KEYED, PEERS, PLAIN, SHIPPED

COUNTS = (1, 32)
LITSERVE, ONE, TWO = (peer.name for peer in PEERS)
Row = dict[str, Any]
KEYS = "exits off: requests/s of msmlp, with keys, relative to msmlp"


def row(case: str, server: str, connections: int | None, speed: float, p99: float | None = None) -> Row:
    found = {"round": 0, "case": case, "server": server, "connections": connections, "requests_per_second": speed}
    if connections is None:
        return {**found, "way": "batches of 8"}
    return {
        **found,
        "processes": 3,
        "p99_ms": p99,
        "server_cpu_seconds_per_1000": 2.0,
        "outside_seconds_per_1000": 0.25,
        "generator_cpu": 0.1,
        "others_cpu": 0.25,
        "statuses": {"200": 100},
        "looked_at": 10,
        "wrong": 0,
        "degraded": 0,
        "exits": {"1": 6, "2": 4},
        "batches": {"1:4": 6, "1:8": 4, "2:2": 4},
    }


def rows() -> list[Row]:
    found = []
    for case in (PLAIN, CASCADE):
        found += [row(case, BARE, None, 1000), row(case, DECODED, None, 950), row(case, ALONE, None, 800)]
        for count in COUNTS:
            found += [row(case, OURS, count, 900, 5), row(case, LITSERVE, count, 300, 10)]
            found += [
                row(case, ONE, count, 600, 40),
                row(case, TWO, count, 500, 30),
                row(case, LEAST.name, count, 950, 4),
            ]
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


def found(runs: list[Row], goal: str, count: int | None) -> Row:
    [only] = [each for each in goals(runs) if each["goal"] == goal and each["connections"] == count]
    return only


def test_a_goal_is_the_median_of_the_ratios_within_the_rounds() -> None:
    # The machine was at half its speed in the second round: medians of speeds would not pair.
    speeds = [(900, 1000), (400, 500), (100, 90)]
    runs = [
        {**row(PLAIN, server, 8, speed, 5), "round": number}
        for number, pair in enumerate(speeds)
        for server, speed in zip((OURS, LEAST.name), pair, strict=True)
    ]
    reached = found(runs, "exits off: requests/s relative to least server", 8)
    assert (reached["measured"], reached["met"], reached["wanted"]) == (0.9, True, "≥ 0.90")
    missed = found([*runs[:4]], "exits off: requests/s relative to least server", 8)
    assert (missed["measured"], missed["met"]) == (0.85, False)
    most = found(runs, "exits off: p99 relative to least server", 8)
    assert (most["measured"], most["met"], most["wanted"]) == (1.0, True, "≤ 1.20")
    outside = found(runs, "exits off: ms of CPU per request outside compute", 8)
    assert (outside["measured"], outside["met"]) == (0.25, True)


def test_several_servers_of_a_kind_count_with_their_mean_of_a_round() -> None:
    speeds = ((OURS, 900), (OURS_KEYED, 1000), (OURS, 1100), (OURS_KEYED, 960))
    keyed = found([row(PLAIN, server, 8, speed) for server, speed in speeds], KEYS, 8)
    assert (keyed["measured"], keyed["met"]) == (0.98, True)


def test_the_best_peer_is_the_fastest_at_that_load() -> None:
    runs = [row(CASCADE, OURS, 8, 700), row(CASCADE, TWO, 8, 500), row(CASCADE, ONE, 8, 600), row(CASCADE, ONE, 32, 10)]
    best = found(runs, "cascade: requests/s relative to the best peer", 8)
    assert (best["measured"], best["met"]) == (1.167, True)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    each = goals([row(PLAIN, OURS, 8, 700)])
    unmeasured = [goal for goal in each if goal["goal"].startswith((CASCADE, SHIPPED))]
    assert len(unmeasured) > 10
    assert all(goal["met"] is None and goal["measured"] is None for goal in unmeasured)
    assert {goal.over for goal in GOALS if goal.figure == SPEED and goal.of == OURS} == {LEAST.name, BEST, TWO}
    assert {(goal.of, goal.over) for goal in GOALS if goal.of != OURS} == {(OURS_KEYED, OURS)}


def test_wrong_and_degraded_answers_are_goals_and_faults() -> None:
    runs = rows()
    assert faults(runs) == 0
    runs[3] = {**runs[3], "degraded": 2}
    runs[4] = {**runs[4], "wrong": 1}
    assert faults(runs) == 3
    assert [(each["measured"], each["met"]) for each in goals(runs)[-2:]] == [(2, False), (1, False)]


def document(found: list[Row]) -> Row:
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
        "runs": found,
        "goals": goals(found),
        "minutes": 9.5,
    }


def test_the_page_has_every_server_goal_and_setting() -> None:
    lines = page(document(rows())).splitlines()
    assert f"| {OURS} | 900 / 5.0 / 2.00 / 0.25 | 900 / 5.0 / 2.00 / 0.25 |" in lines
    assert f"| {ONE} | 600 / 40.0 / 2.00 / 0.25 | 600 / 40.0 / 2.00 / 0.25 |" in lines
    assert f"| {LEAST.name} | 950 / 4.0 / 2.00 / 0.25 | 950 / 4.0 / 2.00 / 0.25 |" in lines
    assert any("Of 200 answers 0 were wrong and 0 degraded" in line for line in lines)
    assert "A word of who ran it." in lines
    assert any("took 0.25 cores (median)" in line for line in lines)
    assert any(f"{name}: 800 images/s (batches of 8)" in line for name in (ALONE,) for line in lines)
    assert (
        "| cascade: requests/s relative to least server | 8 / 32 / 128 | ≥ 0.90 | - / 0.95 / - | - / yes / - |" in lines
    )
    missed = "1.25 / - / 1.25 / - | **no** / - / **no** / - |"
    assert f"| exits off: p99 relative to least server | 1 / 8 / 32 / 128 | ≤ 1.20 | {missed}" in lines
    assert f"At stage 1, by connections: {OURS}: 3 processes, batches of 5.6 / 5.6." in lines
    assert any(line.startswith("Share of the answers by exit") and f"{OURS} 60.0 / 40.0 %" in line for line in lines)
    assert any(line.startswith(f"| {PLAIN} | {LITSERVE} | workers 1, threads 1") for line in lines)
    assert "Not answered with 200, wrong or degraded:" not in lines


def test_a_file_of_figures_becomes_the_page_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = document(rows())
    (tmp_path / "run.json").write_text(json.dumps(whole))
    monkeypatch.setattr("sys.argv", ["peers", "--page", str(tmp_path / "run.json")])
    assert command.main() == 0
    assert capsys.readouterr().out == page(whole)


def test_a_part_of_a_run_has_a_page_too() -> None:
    text = page(document([each for each in rows() if each["case"] == CASCADE and each["connections"] in (None, 1)]))
    assert "## Cascade" in text
    assert "## Exits off" not in text
    assert f"| {OURS} | 900 / 5.0 / 2.00 / 0.25 | - |" in text


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
            nothing = {"server_cpu_seconds_per_1000": None, "outside_seconds_per_1000": None, "exits": {}}
            each.update(requests_per_second=0.0, p99_ms=None, **nothing)
    text = page(document(found))
    assert f"| {LITSERVE} | 0 / - / - / - | 0 / - / - / - |" in text
    assert f"{LITSERVE} no answer" in text
