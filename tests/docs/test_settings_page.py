"""The settings reference has a whole line for every setting; tests/scripts/test_docs.py checks that it is current."""

import re

import pytest

from msmlp.service.settings import Settings
from tests.docs.test_readme import ROOT

PAGE = (ROOT / "docs" / "settings.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_its_line(name: str) -> None:
    option, variable = "--" + name.replace("_", "-"), "MSMLP_" + name.upper()
    lines = re.findall(rf"^\| `{option}` \| `{variable}` \| `(.+)` \| (.*) \| (.+) \|$", PAGE, flags=re.MULTILINE)
    assert len(lines) == 1
    default, _, meaning = lines[0]
    assert default != "None"
    assert len(meaning.split()) >= 3
    assert meaning.endswith(".")


def test_ranges_and_choices_are_said() -> None:
    assert "| `--port` | `MSMLP_PORT` | `8000` | 0 to 65535 |" in PAGE
    assert "| `--device` | `MSMLP_DEVICE` | `auto` | `auto`, `cpu`, `cuda` |" in PAGE
