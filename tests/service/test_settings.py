import inspect
from pathlib import Path

import pytest
from pydantic import ValidationError

from msmlp.model.errors import OptionError
from msmlp.service.cli import serve
from msmlp.service.settings import REMOVED, Settings, load_settings


@pytest.mark.parametrize("name", ["MSMLP_CAPACITY", "MSMLP_POLICY", "MSMLP_GRPC_PORT"])
def test_a_variable_that_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings = load_settings()
    monkeypatch.setenv(name, "")
    assert load_settings() == settings


def test_defaults() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.policy) == ("127.0.0.1", 8000, "balanced")


def test_connections_are_kept_for_longer_than_proxies_keep_theirs() -> None:
    """nginx and AWS keep 60 s: one that the server closes first is a 502 now and then."""
    assert Settings().keep_alive_seconds > 60


def test_options_go_before_the_environment_and_that_before_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSMLP_PORT", "9001")
    monkeypatch.setenv("MSMLP_POLICY", "fast")
    settings = load_settings(port=9002, host=None)
    assert (settings.port, settings.policy, settings.host) == (9002, "fast", "127.0.0.1")


def test_every_setting_is_an_option_of_serve_and_the_other_way_round() -> None:
    assert set(inspect.signature(serve).parameters) - set(REMOVED) == set(Settings.model_fields)


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_settings_are_frozen_and_unknown_ones_refused() -> None:
    settings = Settings(weights=Path("w"))
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(OptionError, match="--prot"):
        load_settings(prot=1)


def test_an_unknown_setting_in_the_environment_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSMLP_PROT", "9000")
    with pytest.raises(OptionError, match=r"MSMLP_PROT: no such setting; expected one of .*MSMLP_PORT"):
        load_settings()


def test_a_removed_setting_is_refused_with_what_to_use_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = "removed in 0.2; use msmlp_requests_total"
    with pytest.raises(OptionError, match=f"^--triton-metrics: {advice}"):
        load_settings(triton_metrics=False)
    monkeypatch.setenv("MSMLP_TRITON_METRICS", "1")
    with pytest.raises(OptionError, match=f"^MSMLP_TRITON_METRICS: {advice}"):
        load_settings()
    monkeypatch.setenv("MSMLP_TRITON_METRICS", "")
    assert load_settings() == load_settings(triton_metrics=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70000),
        ("port", "http"),
        ("max_batch", 0),
        ("capacity", 0),
        ("device", "tpu"),
        ("dtype", "int4"),
        ("backend", "jax"),
        ("max_pixels", 0),
        ("max_pixels", 10**12),
        ("log_level", "loud"),
    ],
)
def test_a_bad_value_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        load_settings(**{name: value})
    assert str(caught.value).startswith(f"--{name.replace('_', '-')}: ")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv(f"MSMLP_{name.upper()}", str(value))
    with pytest.raises(OptionError, match=f"MSMLP_{name.upper()}: "):
        load_settings()
