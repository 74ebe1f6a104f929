"""docs/kubernetes.md has every value of the chart with its default."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from scripts.docs import SET_BY_OTHER_VALUES
from tests.docs.test_readme import ROOT

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
CHART = ROOT / "docker" / "helm" / "msmlp"


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that stands for itself, with its dotted name; `resources` and labels are filled in as a whole."""
    for name, value in values.items():
        whole = not isinstance(value, dict) or not value or name in ("requests", "limits", "labels")
        yield from [(prefix + name, value)] if whole else leaves(value, f"{prefix}{name}.")


def listed() -> dict[str, Any]:
    """The table: the names of each row, and as many defaults."""
    found = {}
    for names, defaults in re.findall(r"^\| (`.+?`) \| (`.+?`) \| .+ \|$", PAGE, flags=re.MULTILINE):
        quoted = [re.findall(r"`(.+?)`", cell) for cell in (names, defaults)]
        found.update({name: yaml.safe_load(default) for name, default in zip(*quoted, strict=True)})
    return found


def test_every_value_is_listed_with_its_default() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert listed() == dict(leaves(values))


def test_settings_that_are_other_values_are_named() -> None:
    [row] = re.findall(r"^\| `settings` \|.*$", PAGE, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == {"settings"} | SET_BY_OTHER_VALUES
