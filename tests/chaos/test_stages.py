"""A stage raises, hangs, or gives scores that are not numbers, while others are answered."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.harness import Target, at_length, post
from tests.chaos.load import known_to_fakes
from tests.e2e.test_frontends import front_ends
from tests.fakes import picture
from tests.processes import started
from tests.servers import encoded
from tests.service.frontends import hanging

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")


@contextmanager
def fake_target(weights: Path, engine: str, folder: Path) -> Iterator[Target]:
    command = [sys.executable, hanging.__file__, str(weights), "2", engine, "silence=2.5"]
    with started(*command, TMPDIR=str(folder)) as served:
        served.wait_until_ready(2)
        yield Target(served, known_to_fakes(), 2, folder)


def poison(label: int) -> bytes:
    return encoded(picture(1.0, label=label, size=32))


@pytest.fixture(scope="module", params=["inline", "process"])
def fake(
    request: pytest.FixtureRequest, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    with fake_target(tiny_weights, request.param, tmp_path_factory.mktemp("tmp")) as target:
        yield target


@pytest.mark.parametrize("label", [hanging.RAISES, hanging.INVALID, *at_length(hanging.SLOW, hanging.HANGS)])
def test_a_stage_that_fails(fake: Target, label: int) -> None:
    """Whoever sent the picture learns that it failed; a front end whose own engine hangs loses others too."""
    with fake.ordeal("503", "lost", "cut", traces=label == hanging.RAISES):
        statuses = [post(fake, poison(label), tries=1) for _ in range(3 if label != hanging.HANGS else 1)]
        expected = {200} if label == hanging.SLOW else {503} if label != hanging.HANGS else {503, None}
        assert set(statuses) <= expected


@pytest.mark.chaos
def test_a_stage_that_is_broken_for_good_until_its_process_is_replaced(fake: Target) -> None:
    before = front_ends(fake.served)
    with fake.ordeal("503", "lost", "cut") as load:
        assert post(fake, poison(hanging.BREAKS), tries=1) in (503, None)
        load.wait_for(20)
    assert front_ends(fake.served) - before, "its process is a new one"
