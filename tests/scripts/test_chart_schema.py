"""The chart's values know the service's settings, as they are now."""

import json
import tomllib

import pytest
import yaml

from msmlp.service.settings import Settings
from scripts.chart_schema import BY_OTHER_VALUES, SCHEMA, filled
from tests.docs.test_readme import ROOT

TEXT = SCHEMA.read_text()


def test_the_schema_is_up_to_date() -> None:
    assert filled(TEXT) == TEXT, "make docs"


def test_every_setting_is_a_value_or_follows_from_one() -> None:
    known = json.loads(TEXT)["properties"]["settings"]["properties"]
    assert known.keys() | BY_OTHER_VALUES == Settings.model_fields.keys()
    assert known["max_batch"].items() >= {"type": "integer", "minimum": 1, "maximum": 4096}.items()
    assert known["capacity"].items() >= {"type": "integer", "minimum": 1}.items()
    assert known["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert "default" not in known["decode_threads"]


def test_another_range_would_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Settings.model_json_schema()
    other["properties"]["max_batch"]["maximum"] = 8192
    monkeypatch.setattr(Settings, "model_json_schema", lambda: other)
    assert filled(TEXT) != TEXT


def test_the_chart_has_the_version_of_the_service() -> None:
    chart = yaml.safe_load((SCHEMA.parent / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)
