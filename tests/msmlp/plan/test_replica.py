"""A replica's time is that of its work, and nothing is lost in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.plan.replica import Answer, Limits, Replica, Request
from tests.msmlp.plan.conftest import HOST, STAGES, Build


def run(replica: Replica, *requests: Request) -> list[Answer]:
    """Turn after turn, until all is answered; requests come when they are due."""
    coming = sorted(requests)
    while coming or replica.wakes < float("inf"):
        if coming and coming[0].sent <= replica.wakes:
            replica.receive(coming[0], coming[0].sent)
            coming.pop(0)
        else:
            replica.turn(replica.wakes)
    return replica.answers


@pytest.mark.parametrize("layout", ["inline", "process"])
def test_a_lone_request_takes_as_long_as_its_stages_and_its_front_end(replica: Build, layout: str) -> None:
    one = replica(layout=layout)
    for answer in run(one, *(Request(float(second), 1) for second in range(50))):
        [exit] = [place for place, count in enumerate(answer.exits) if count]
        assert answer.status == 200
        assert answer.latency == pytest.approx(HOST + sum(STAGES[: exit + 1]))


@pytest.mark.parametrize(("idle", "longer"), [(0.002, 0.0005), (0.005, 0.0008), (1.0, 0.0013)])
def test_after_a_pause_a_request_takes_longer_up_to_a_limit(replica: Build, idle: float, longer: float) -> None:
    seconds = tuple((second,) for second in (1e-9, 1e-9, 1e-9))
    cold = {"wake_seconds": 0.0003, "wake_share": 0.1}
    one = replica(buckets=(1,), stage_seconds=seconds, **cold)
    first, second = run(one, Request(1.0, 1), Request(1.0 + HOST + 0.0013 + idle, 1))
    assert first.latency == pytest.approx(HOST + 0.0013, abs=1e-6)
    assert second.latency == pytest.approx(HOST + longer, abs=1e-6)


def test_requests_that_come_together_share_batches(replica: Build) -> None:
    together = run(replica(), *(Request(1.0, 1) for _ in range(16)))
    alone = HOST * 16 + 16 * sum(STAGES)
    assert max(each.latency for each in together) < alone / 2


def test_front_ends_work_beside_the_device(replica: Build) -> None:
    many = [Request(1.0, 1) for _ in range(64)]
    inline = max(each.latency for each in run(replica(request_seconds=0.01), *many))
    beside = replica(request_seconds=0.01, layout="process", front_ends=4)
    assert max(each.latency for each in run(beside, *many)) < 0.4 * inline


def test_front_ends_read_while_a_batch_runs_and_answer_when_it_ends(replica: Build) -> None:
    """The second request is read and the third refused while the first one's batch of 1 s runs."""
    seconds = tuple((second,) for second in (1.0, 1e-9, 1e-9))
    known = {"layout": "process", "buckets": (1,), "stage_seconds": seconds, "front_ends": 2}
    one = replica(Limits(max_wait=2.5, brownout=0), **known)
    answers = {each.sent: each for each in run(one, Request(0.0, 1), Request(0.1, 1), Request(0.2, 1))}
    assert [answers[sent].status for sent in (0.0, 0.1, 0.2)] == [200, 200, 429]
    assert answers[0.0].latency == pytest.approx(1 + HOST)
    assert answers[0.1].latency == pytest.approx(1.9 + HOST, abs=HOST)
    assert answers[0.2].latency == pytest.approx(HOST / 2)


def test_a_small_request_does_not_wait_for_a_large_one_that_another_front_end_reads(replica: Build) -> None:
    one = replica(layout="process", front_ends=2, image_seconds=0.001)
    answers = {each.images: each for each in run(one, Request(0.0, 400), Request(0.001, 1))}
    assert answers[1].latency < 0.02 < 0.4 < answers[400].latency


def test_what_is_refused_costs_no_more_than_a_refusal(replica: Build) -> None:
    one = replica(permits=40)
    answers = run(one, Request(0.0, 41))
    assert [each.status for each in answers] == [429]
    assert answers[0].latency == pytest.approx(HOST / 2)


def test_exits_and_accuracy_are_those_of_the_table(replica: Build) -> None:
    answers = run(replica(), *(Request(0.1 * number, 1) for number in range(1000)))  # each image once
    found = [sum(each.exits[place] for each in answers) / 1000 for place in range(3)]
    assert found == pytest.approx([0.5, 0.3, 0.2], abs=0.05)
    assert sum(each.right for each in answers) / 1000 == pytest.approx(0.5 * 0.7 + 0.3 * 0.8 + 0.2 * 0.9, abs=0.04)


def overloaded(replica: Replica, seconds: float = 3.0) -> list[Answer]:
    """Three times of what it can do, with a look every tenth of a second."""
    for tick in range(round(10 * seconds)):
        now = tick / 10
        run_until(replica, now, [Request(now + number / 2000, 1) for number in range(200)])
        replica.look(now)
    return run(replica)


def run_until(replica: Replica, now: float, requests: list[Request]) -> None:
    for request in requests:
        while replica.wakes < request.sent:
            replica.turn(replica.wakes)
        replica.receive(request, request.sent)


def test_overload_is_refused_and_what_is_admitted_waits_no_longer_than_it_may(replica: Build) -> None:
    answers = overloaded(replica(Limits(max_wait=0.2, brownout=0)))
    refused = [each for each in answers if each.status == 429]
    assert len(refused) > len(answers) / 4
    assert not any(each.degraded for each in answers)
    # Single batches and lags come on top of what admission predicts.
    assert max(each.latency for each in answers if each.status == 200) < 0.4


def test_brownout_answers_more_of_an_overload(replica: Build) -> None:
    plain = overloaded(replica(Limits(max_wait=0.2, brownout=0)))
    browned = overloaded(replica(Limits(max_wait=0.2, brownout=0.05)))
    assert sum(each.degraded for each in browned) > len(browned) / 4
    assert sum(each.status == 429 for each in browned) < sum(each.status == 429 for each in plain) / 2


requests = st.lists(st.builds(Request, st.floats(0, 0.2), st.integers(1, 40)), max_size=60)


@given(
    requests=requests,
    layout=st.sampled_from(["inline", "process"]),
    front_ends=st.integers(1, 3),
    in_flight=st.integers(1, 2),
    permits=st.integers(40, 100),
    max_wait=st.sampled_from([0.0, 0.01, 0.1]),
)
def test_every_request_ends_once_and_nothing_stays(
    requests: list[Request], layout: str, front_ends: int, in_flight: int, permits: int, max_wait: float
) -> None:
    from tests.msmlp.plan import conftest

    build = conftest.replica.__wrapped__()  # type: ignore[attr-defined]
    one = build(
        Limits(max_wait, max_wait / 4), layout=layout, front_ends=front_ends, in_flight=in_flight, permits=permits
    )
    answers = run(one, *requests)
    assert sorted((each.sent, each.images) for each in answers) == sorted(requests)
    admission = one.overload.admission
    assert (admission.inflight, admission.inside, admission.door.work) == (0, 0, 0)
    assert one.core.idle
    for each in answers:
        assert each.latency >= 0
        assert sum(each.exits) == (each.images if each.status == 200 else 0)


def test_what_a_dead_replica_had_not_answered_is_lost(replica: Build) -> None:
    one = replica()
    for number in range(100):
        one.receive(Request(0.0001 * number, 1), 0.0001 * number)
    one.turn(0.01)
    lost = one.die(0.02)
    assert len(lost) + len(one.answers) == 100
    assert lost
    assert all(each.sent + each.latency <= 0.02 for each in one.answers)
