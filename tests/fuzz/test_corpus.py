"""What the fuzzers found, and one of each kind that they began with: each is refused as it should be, or read."""

import pytest

from tests.fuzz.targets import CORPUS, TARGETS

MOST_BYTES = 64 * 1024


@pytest.mark.parametrize(
    ("target", "name"),
    [(target, file.name) for target in TARGETS for file in sorted((CORPUS / target).iterdir())],
)
def test_bytes(target: str, name: str) -> None:
    TARGETS[target]((CORPUS / target / name).read_bytes())


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < MOST_BYTES
