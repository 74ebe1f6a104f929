"""Which step is next: order, needs, the tail of a lease, failures, what was left behind."""

from pathlib import Path

import pytest

from benchmarks.gpu_campaign.records import ATTEMPTS, LONGEST, Records, Run, Where
from benchmarks.gpu_campaign.schedule import Schedule
from benchmarks.gpu_campaign.steps import Command, Step

TEACHER = Command("teacher.train", ("train",), folder="teacher")
CASCADE = Command("cascade.train", ("train",), folder="cascade", needs=("teacher.train",))
BENCH = Command("cascade.bench", ("bench",), output="cascade.bench.json", needs=("cascade.train",))
PLAIN = Command("plain.train", ("train",), folder="plain")
STEPS = [
    Step("teacher.train", (TEACHER,), 90),
    Step("cascade.train", (CASCADE,), 90),
    Step("cascade.bench", (BENCH,), 120),
    Step("plain.train", (PLAIN,), 60),
]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path, Where("a device", "2.11.0", "abc"))


@pytest.fixture
def schedule(records: Records) -> Schedule:
    return Schedule(STEPS, records, records.work)


def done(records: Records, command: Command) -> None:
    records.add(command, Run("done", 0, 100.0, 1))
    if command.folder:
        (records.work / command.folder).mkdir(exist_ok=True)
        (records.work / command.folder / "manifest.json").touch()


def next_name(schedule: Schedule, left: float) -> str | None:
    step = schedule.next(left)
    return step and step.name


def test_the_most_valuable_comes_first_and_waits_for_what_it_needs(schedule: Schedule, records: Records) -> None:
    seen = []
    while (step := schedule.next(1000)) is not None:
        seen.append(step.name)
        done(records, step.commands[0])
    assert seen == [step.name for step in STEPS]
    assert all(schedule.closed(command) for step in STEPS for command in step.commands)


def test_the_tail_of_a_lease_goes_to_what_can_still_get_anywhere(schedule: Schedule, records: Records) -> None:
    assert next_name(schedule, 89) == "plain.train"
    assert next_name(schedule, 59) is None
    done(records, TEACHER)
    done(records, CASCADE)
    assert next_name(schedule, 119) == "plain.train"
    assert next_name(schedule, 120) == "cascade.bench"
    assert schedule.why_not(STEPS[2], BENCH) == "wants 120 s"


def test_what_a_step_was_seen_to_need_takes_the_place_of_the_guess(schedule: Schedule, records: Records) -> None:
    records.add(TEACHER, Run("stopped", 1, 300.0, 1, epochs=9, first_epoch_seconds=20.0))
    assert next_name(schedule, 26) == "teacher.train"
    assert next_name(schedule, 25) is None
    # No epoch in 200 s: with as much again it would get nowhere again.
    records.add(TEACHER, Run("stopped", 1, 200.0, 1, epochs=9))
    assert next_name(schedule, 299) == "plain.train"
    assert next_name(schedule, 300) == "teacher.train"


def test_a_failure_holds_up_only_what_needs_it(schedule: Schedule, records: Records) -> None:
    schedule.failed.add(TEACHER.name)
    assert next_name(schedule, 1000) == "plain.train"
    assert schedule.why_not(STEPS[1], CASCADE) == "waits for teacher.train"
    assert [schedule.stuck(command) for command in (TEACHER, CASCADE, BENCH, PLAIN)] == [True, True, True, False]


def test_what_fails_again_and_again_is_given_up_until_the_code_changes(records: Records) -> None:
    for _ in range(ATTEMPTS):
        assert next_name(Schedule(STEPS, records, records.work), 1000) == "teacher.train"
        records.add(TEACHER, Run("failed", 1, 5.0, 1))
    assert next_name(Schedule(STEPS, records, records.work), 1000) == "plain.train"
    mended = Records(records.work, Where("a device", "2.11.0", "def"))
    assert next_name(Schedule(STEPS, mended, records.work), 1000) == "teacher.train"


def test_weights_left_behind_are_made_again_only_for_somebody(schedule: Schedule, records: Records) -> None:
    for command in (TEACHER, CASCADE, PLAIN):
        records.add(command, Run("done", 0, 100.0, 1))
    # All three trained elsewhere, no folder came along: the bench wants the cascade, which wants its teacher.
    assert next_name(schedule, 1000) == "teacher.train"
    done(records, TEACHER)
    assert next_name(schedule, 1000) == "cascade.train"
    done(records, CASCADE)
    done(records, BENCH)
    assert next_name(schedule, 1000) is None


def test_of_a_group_only_those_run_that_are_left(records: Records) -> None:
    group = Step("group.train", (PLAIN, CASCADE, TEACHER), 60)
    schedule = Schedule([group], records, records.work)
    done(records, PLAIN)
    step = schedule.next(1000)
    assert step is not None
    assert [command.name for command in step.commands] == ["teacher.train"]


def test_what_gets_nowhere_is_tried_with_a_whole_call_and_then_given_up(schedule: Schedule, records: Records) -> None:
    """It must not want more than any call has, and be neither begun nor given up for ever."""
    records.add(TEACHER, Run("stopped", 1, 400.0, 1))
    assert next_name(schedule, LONGEST) == "teacher.train"
    for _ in range(ATTEMPTS):
        assert not schedule.stuck(TEACHER)
        records.add(TEACHER, Run("stopped", 1, LONGEST + 1.0, 1))
    assert schedule.stuck(TEACHER)
    assert next_name(schedule, 1000) == "plain.train"
