"""Paths as metrics name them: a bounded set, whatever is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msmlp.service.oip.model import is_oip, route_label

LABELS = {
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/stats",
    "/v2/repository/index",
    *(f"/v2/models/{{name}}{action}" for action in ("", "/ready", "/config", "/stats", "/infer")),
}


@given(st.text(alphabet="/v2modelsversioninfrcg{}.%", max_size=40).map(lambda tail: "/v2" + tail))
def test_labels_are_few(path: str) -> None:
    assert route_label(path) in LABELS | {None}


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v2", "/v2"),
        ("/v2/models/a", "/v2/models/{name}"),
        ("/v2/models/a/versions/1", "/v2/models/{name}"),
        ("/v2/models/a/infer", "/v2/models/{name}/infer"),
        ("/v2/models/a/versions/1/infer", "/v2/models/{name}/infer"),
        ("/v2/models/stats", "/v2/models/stats"),
        ("/v2/", None),
        ("/v2/models", None),
        ("/v2/models/a/b", None),
        ("/v3", None),
    ],
)
def test_a_path_and_its_label(path: str, label: str | None) -> None:
    assert route_label(path) == label


def test_whose_errors_take_the_protocols_form() -> None:
    assert [is_oip(p) for p in ("/v2", "/v2/", "/v2/x", "/v2x", "/", "/classify")] == [True, True, True] + [False] * 3
