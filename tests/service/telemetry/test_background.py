"""Observers on a thread of their own."""

import logging
import threading

import pytest

from msmlp.service.telemetry import observers
from msmlp.service.telemetry.observers import BackgroundWorker
from msmlp.service.telemetry.record import Account
from tests.fakes import PATIENCE_SECONDS
from tests.servers import wait_until


def account(number: int) -> Account:
    return Account(f"r-{number}", 0.0)


def test_all_that_wait_are_told_of_in_their_order_before_the_end() -> None:
    first: list[str] = []
    second: list[str] = []
    watching = BackgroundWorker(
        [lambda each: first.append(each.request_id), lambda each: second.append(each.request_id)]
    )
    for number in range(100):
        watching.ended(account(number))
    assert watching.close(PATIENCE_SECONDS)
    assert first == second == [f"r-{number}" for number in range(100)]


def test_who_is_slow_holds_nobody_up_and_what_is_dropped_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(observers, "QUEUE_REQUESTS", 3)
    caplog.set_level(logging.WARNING, "msmlp.telemetry")
    may_go, begun = threading.Event(), threading.Event()
    seen: list[str] = []

    def slow(each: Account) -> None:
        begun.set()
        assert may_go.wait(PATIENCE_SECONDS)
        seen.append(each.request_id)

    watching = BackgroundWorker([slow])
    watching.ended(account(0))
    assert begun.wait(PATIENCE_SECONDS)
    for number in range(1, 8):
        watching.ended(account(number))  # three wait, four are dropped
    assert not watching.close(0.05)
    may_go.set()
    wait_until(lambda: bool(caplog.records))
    assert seen == ["r-0", "r-1", "r-2", "r-3"]
    assert [record.getMessage().split()[0] for record in caplog.records] == ["4"]
    assert watching.close(PATIENCE_SECONDS)


def test_one_that_fails_is_logged_and_the_others_hear(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def fail(each: Account) -> None:
        raise ValueError("broken")

    watching = BackgroundWorker([fail, lambda each: seen.append(each.request_id)])
    watching.ended(account(0))
    assert watching.close(PATIENCE_SECONDS)
    assert seen == ["r-0"]
    assert "an observer of requests failed" in caplog.text
