import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.model.errors import OptionError
from msmlp.service.options import SELECTORS, RequestOptions, parse_options


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("thresholds", "0.9,0.8", (0.9, 0.8)),
        ("thresholds", " 0.9 , 0.8 ", (0.9, 0.8)),
        ("thresholds", "[0.9, 0.8]", (0.9, 0.8)),
        ("thresholds", [0.9, 0.8], (0.9, 0.8)),
        ("thresholds", [0, 1], (0.0, 1.0)),
        ("thresholds", "0.5", (0.5,)),
        ("thresholds", 0.5, (0.5,)),
        ("thresholds", "[]", ()),
        ("thresholds", "", ()),
        ("thresholds", [], ()),
        ("policy", "fast", "fast"),
        ("budget_gflops", "0.25", 0.25),
        ("budget_gflops", 3, 3.0),
        ("min_accuracy", "0.9", 0.9),
        ("max_gflops", "1e-3", 0.001),
        ("min_exit", "2", 2),
        ("max_exit", 3, 3),
        ("top_k", "5", 5),
        ("top_k", 5.0, 5),
        ("accuracy_floor", "0.7", 0.7),
        ("deadline_ms", "12.5", 12.5),
        ("deadline_ms", 0, 0.0),
        ("degrade", "false", False),
        ("degrade", True, True),
        ("stream", "1", True),
        ("stream", "True", True),
        ("stream", False, False),
    ],
)
def test_an_option_as_text_or_as_json(name: str, raw: Any, value: Any) -> None:
    options = parse_options({name: raw})
    assert getattr(options, name) == value
    assert options == RequestOptions(**{name: value})


def test_nothing_given() -> None:
    assert parse_options({}) == RequestOptions()


@pytest.mark.parametrize(
    ("name", "raw", "allowed"),
    [
        ("thresholds", "1.1,0.5", "0 to 1"),
        ("thresholds", "-0.1,0.5", "0 to 1"),
        ("thresholds", "nan,0.5", "0 to 1"),
        ("thresholds", "0.5,", "0 to 1"),
        ("thresholds", "high", "0 to 1"),
        ("thresholds", "[0.5", "0 to 1"),
        ("thresholds", "[" * 900, "0 to 1"),
        ("thresholds", "[" * 10**6, "0 to 1"),
        ("thresholds", "0," * 10**6, "0 to 1"),
        ("thresholds", [0] * 10**5, "0 to 1"),
        ("budget_gflops", "1" * 10**6, "a number, 0 or more"),
        ("top_k", "1" * 10**6, "a whole number"),
        ("thresholds", [0.5, None], "0 to 1"),
        ("thresholds", [[0.5]], "0 to 1"),
        ("thresholds", {"1": 0.5}, "0 to 1"),
        ("thresholds", [True, False], "0 to 1"),
        ("thresholds", None, "0 to 1"),
        ("policy", 3, "the name of an operating point"),
        ("policy", None, "the name of an operating point"),
        ("budget_gflops", "-1", "0 or more"),
        ("budget_gflops", "cheap", "0 or more"),
        ("budget_gflops", "nan", "0 or more"),
        ("budget_gflops", 10**400, "0 or more"),
        ("min_accuracy", "1.01", "0 to 1"),
        ("min_accuracy", 90, "0 to 1"),
        ("max_gflops", "", "0 or more"),
        ("min_exit", "0", "1 to 1e9"),
        ("min_exit", "1.5", "1 to 1e9"),
        ("max_exit", "-3", "1 to 1e9"),
        ("max_exit", True, "1 to 1e9"),
        ("top_k", "0", "1 to 1e9"),
        ("top_k", "many", "1 to 1e9"),
        ("top_k", "inf", "1 to 1e9"),
        ("top_k", [5], "1 to 1e9"),
        ("top_k", 10**12, "1 to 1e9"),
        ("accuracy_floor", "2", "0 to 1"),
        ("deadline_ms", "-1", "0 to 1e9"),
        ("deadline_ms", "inf", "0 to 1e9"),
        ("deadline_ms", "soon", "0 to 1e9"),
        ("degrade", "maybe", "true or false"),
        ("degrade", 1, "true or false"),
        ("degrade", None, "true or false"),
        ("stream", "", "true or false"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, raw: Any, allowed: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options({name: raw})
    assert caught.value.name == name
    assert str(caught.value).startswith(f"{name}: ")
    assert allowed in str(caught.value)


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"treshold.*no such option.*thresholds, policy, budget_gflops"):
        parse_options({"treshold": "0.5"})


VALID = {"thresholds": "0.5,0.5", "policy": "fast", "budget_gflops": "1", "min_accuracy": "0.5"}


@pytest.mark.parametrize("first", SELECTORS)
@pytest.mark.parametrize("second", SELECTORS)
def test_only_one_selector(first: str, second: str) -> None:
    if first == second:
        parse_options({first: VALID[first]})
        return
    with pytest.raises(OptionError, match="give only one of") as caught:
        parse_options({first: VALID[first], second: VALID[second]})
    assert {caught.value.name} < {first, second}
    assert all(name in str(caught.value) for name in (first, second))


def test_the_floor_does_not_go_with_thresholds() -> None:
    with pytest.raises(OptionError, match=r"accuracy_floor: .* thresholds"):
        parse_options({"thresholds": "0.5,0.5", "accuracy_floor": "0.5"})
    for selector in ("policy", "budget_gflops", "min_accuracy"):
        assert parse_options({selector: VALID[selector], "accuracy_floor": "0.5"}).accuracy_floor == 0.5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.just("k"), children),
    max_leaves=3,
)


NAMES = st.sampled_from(
    [*VALID, "max_gflops", "min_exit", "max_exit", "top_k", "accuracy_floor", "deadline_ms", "stream", "\ud800"]
)


@given(st.dictionaries(NAMES, JSON, max_size=2))
def test_whatever_is_given_is_read_or_refused_in_words(given_values: dict[str, Any]) -> None:
    try:
        options = parse_options(given_values)
    except OptionError as error:
        str(error).encode()  # it goes into a JSON document
        return
    for threshold in options.thresholds or ():
        assert 0 <= threshold <= 1
    for count in (options.min_exit, options.max_exit, options.top_k):
        assert count is None or (isinstance(count, int) and count >= 1)
    for number in (options.budget_gflops, options.max_gflops):
        assert number is None or (number >= 0 and not math.isnan(number))
