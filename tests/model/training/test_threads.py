import pytest
import torch

from msmlp.model.training import threads
from msmlp.model.training.threads import fastest_threads


def scripted(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, list[float]]) -> list[int]:
    """Make a step take the next of `seconds` of its number of threads → the numbers, in the order of the steps."""
    seen: list[int] = []

    def took(step: object) -> float:
        seen.append(torch.get_num_threads())
        return seconds[seen[-1]].pop(0)

    monkeypatch.setattr(threads, "_seconds", took)
    return seen


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: [9, 2, 2, 2], 2: [9, 1, 1, 1]}, 2),
        ({1: [9, 2, 2, 2], 2: [9, 1.9, 1.9, 1.9]}, 1),
        ({1: [9, 2, 2, 2], 2: [9, 20, 30, 20]}, 1),
        ({1: [9, 2, 2, 2], 2: [9, 30, 1, 1]}, 2),
        ({1: [1, 2, 2, 2], 2: [9, 1, 1, 1]}, 2),
        ({1: [9, 4, 4, 4], 2: [9, 2, 2, 2], 3: [9, 3, 3, 3]}, 2),
    ],
    ids=["twice as fast", "hardly faster", "a busy machine", "one slow moment", "the first warms up", "three"],
)
def test_the_fastest_number_wins_if_more_threads_pay(
    seconds: dict[int, list[float]], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    seen = scripted(monkeypatch, seconds)
    assert fastest_threads(lambda: None, sorted(seconds)) == best
    assert seen == sorted(seconds) * 4, "they take turns"
    assert torch.get_num_threads() == before


def test_a_step_that_fails_leaves_torch_as_it_was() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fastest_threads(fail, [before + 1, before + 2])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("torchs", "cores", "tried"), [(8, 3, [1, 2, 3]), (2, 64, [1, 2]), (6, 6, [1, 2, 4, 6])])
def test_no_more_are_tried_than_there_are_cores(
    torchs: int, cores: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: torchs)
    assert threads._counts() == tried


def test_where_there_is_one_core_nothing_is_measured() -> None:
    def step() -> None:
        pytest.fail("measured")

    assert fastest_threads(step, [1]) == 1
