"""The layouts in which things go wrong, and pictures whose answers are known."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.harness import Target, serving
from tests.chaos.load import Known, known_of
from tests.conftest import Digits
from tests.processes import layout

LAYOUTS = [
    layout(2, "inline"),
    layout(2, "process", pytest.mark.chaos),
    pytest.param(
        ("--frontends", "2", "--engine", "process", "--backend", "torch"), id="torch", marks=pytest.mark.chaos
    ),
]

Serve = Callable[..., Target]


@pytest.fixture(scope="session")
def known(tiny_weights: Path, digits: Digits, cat_photo: bytes) -> list[Known]:
    found = known_of(tiny_weights, list(digits.test[::10]), cat_photo)
    assert len(found) > 10
    assert len({each.class_id for each in found}) > 3
    assert len({each.exit for each in found}) > 1
    return found


@pytest.fixture(scope="module", params=LAYOUTS)
def serve(request: pytest.FixtureRequest, tiny_weights: Path, known: list[Known]) -> Iterator[Serve]:
    """Options → a service in each layout, which ends with the module."""
    with ExitStack() as running:
        started: dict[tuple[str, ...], Target] = {}

        def start(*options: str) -> Target:
            if options not in started:
                folder = request.getfixturevalue("tmp_path_factory").mktemp("tmp")
                served = running.enter_context(serving(tiny_weights, request.param, folder, *options))
                started[options] = Target(served, known, int(request.param[1]), folder)
            return started[options]

        yield start
