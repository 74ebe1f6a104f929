"""The answers are those of the simulation: one replica fewer would not do."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from msmlp.plan.page import plan_lines, write_page
from msmlp.plan.question import Goal, Simulation, TooMuchError, answer
from msmlp.plan.replica import Limits
from msmlp.plan.traffic import traffic_of
from tests.msmlp.plan.conftest import Points, costs, table

SECONDS = 4.0
GOAL = Goal(p99_ms=60, accuracy=0.75)


def simulation(rate: float = 1500, **changes: Any) -> Simulation:
    traffic = traffic_of("poisson", rate, SECONDS)
    calibration: Any = SimpleNamespace(table=table())
    points: Any = Points()
    return replace(Simulation(costs(), calibration, points, traffic, Limits(0.5, 0.05)), **changes)


def say(line: str) -> None:
    """Progress is not looked at."""


def test_the_fewest_replicas_that_meet_the_goal() -> None:
    asked = simulation()
    needed = asked.needed(GOAL, 20)
    assert needed > 1
    assert GOAL.met_by(asked.summary(needed))
    assert not GOAL.met_by(asked.summary(needed - 1))


def test_a_goal_that_nothing_meets() -> None:
    message = (
        r"^3 replicas do not meet the goal: p99 [\d.]+ ms, accuracy 0\.\d+, .* refused; expected p99 at most 60 ms"
    )
    with pytest.raises(TooMuchError, match=message):
        simulation().needed(replace(GOAL, accuracy=0.99), 3)


def test_what_one_replica_carries_is_all_that_it_can() -> None:
    asked = simulation(rate=100)
    factor = asked.carried_by_one(GOAL)
    assert factor is not None
    assert GOAL.met_by(asked.summary(1, factor=factor))
    assert not GOAL.met_by(asked.summary(1, factor=1.2 * factor))
    assert asked.carried_by_one(replace(GOAL, p99_ms=0.1)) is None


def test_brownout_needs_fewer_replicas_where_accuracy_may_fall() -> None:
    cheap = replace(GOAL, accuracy=0)
    asked = simulation(rate=2500)
    without = replace(asked, limits=replace(asked.limits, brownout=0.0))
    assert asked.needed(cheap, 20) < without.needed(cheap, 20)


def test_the_document_its_lines_and_its_page(tmp_path: Any) -> None:
    document = answer(simulation(), GOAL, most=20, price=2.5, fail=0.33, say=say)
    needed = document["replicas"]
    assert document["price"]["hour"] == 2.5 * needed
    assert document["price"]["million_images"] == pytest.approx(2.5e6 / document["images_per_replica_hour"])
    assert sum(row["requests"] for row in document["bins"]) == pytest.approx(1500 * SECONDS, rel=0.1)
    failure = document["failure"]
    assert failure["dying"] == max(1, round(needed / 3))
    assert failure["after"]["degraded"] > failure["before"]["degraded"]
    assert failure["lost"] > 0
    assert f"{failure['lost']} requests lost" in "\n".join(plan_lines(document))
    lines = list(plan_lines(document))
    assert lines[0] == f"replicas needed: {needed} cores (onnx on cpu)"
    assert f"price per hour: {2.5 * needed:.2f}" in lines
    assert lines[-1].startswith("Simulated: ")
    write_page(document, tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page, "it needs no other file"
    assert f"<td>{needed} cores (onnx on cpu)</td>" in page


def test_one_replica_without_a_price_and_a_failure() -> None:
    document = answer(simulation(rate=50), GOAL, most=20, price=None, fail=0.33, say=say)
    assert (document["replicas"], document["price"]) == (1, None)
    assert "failure" not in document
    assert not any("price" in line or "died" in line for line in plan_lines(document))
