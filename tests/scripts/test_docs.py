"""`make docs`: the generated files in git are current, and say what their sources say."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

from msmlp.model.text import kept
from msmlp.service.settings import Settings
from scripts.docs import CHART_SCHEMA, POINTS, RESULTS, ROOT, SET_BY_OTHER_VALUES, chart_schema, generated, results_page

WEIGHTS = sorted(path.parent for path in (ROOT / "weights").glob("*/manifest.json"))


@pytest.mark.parametrize(("path", "text"), generated().items(), ids=lambda value: getattr(value, "name", ""))
def test_the_file_in_git_is_current(path: Path, text: str) -> None:
    assert (ROOT / path).read_text() == text, "make docs"


# --- the chart's schema ------------------------------------------------------------------------------------------


def test_every_setting_is_a_value_of_the_chart_or_derived_from_one() -> None:
    known = json.loads((ROOT / CHART_SCHEMA).read_text())["properties"]["settings"]["properties"]
    assert known.keys() | SET_BY_OTHER_VALUES == Settings.model_fields.keys()
    assert known["max_batch"].items() >= {"type": "integer", "minimum": 1, "maximum": 4096}.items()
    assert known["capacity"].items() >= {"type": "integer", "minimum": 1}.items()
    assert known["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert known["frontends"]["anyOf"] == [{"type": "integer", "minimum": 1}, {"const": "auto", "type": "string"}]
    assert "default" not in known["decode_threads"]


def test_a_changed_range_changes_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = Settings.model_json_schema()
    changed["properties"]["max_batch"]["maximum"] = 8192
    monkeypatch.setattr(Settings, "model_json_schema", lambda: changed)
    assert chart_schema() != (ROOT / CHART_SCHEMA).read_text()


def test_the_chart_has_the_version_of_the_service() -> None:
    chart = yaml.safe_load((ROOT / CHART_SCHEMA).with_name("Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


# --- results -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", WEIGHTS, ids=lambda folder: folder.name)
def test_shipped_weights_have_a_section_and_a_card_with_the_same_figures(folder: Path) -> None:
    test = json.loads((ROOT / "docs" / "results" / f"{folder.name}.test.json").read_text())
    card = (folder / "card.md").read_text()
    section = (ROOT / RESULTS).read_text().partition(f"## `{folder.name}`")[2].partition("\n## ")[0]
    assert f"{test['images']} test images" in card
    for exit in test["exits"]:
        accuracy = f"{100 * exit['accuracy']:.2f} %"
        beside = kept(exit["promise"])
        assert f"| {exit['gflops']:.4f} | {accuracy} | {beside} |" in card
        assert f"| {accuracy} | {beside} | {exit['gflops']:.4f} |" in section
    for name in POINTS:
        [point] = [point for point in test["operating_points"] if point["name"] == name]
        row = rf"`{name}` \| {100 * point['accuracy']:.2f} % "
        assert re.search(row, card)
        assert re.search(row, section)
    for picture in ("confusion.png", "reliability.png", "frontier.png"):
        assert (folder / picture).exists()
    assert f"({folder.name}/card.md)" in (ROOT / "weights" / "README.md").read_text()


def test_results_of_another_calibration_are_refused(tmp_path: Path) -> None:
    for part in ("weights/cifar10-s/manifest.json", "weights/cifar10-s/calibration.json"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    test = json.loads((ROOT / "docs" / "results" / "cifar10-s.test.json").read_text())
    path = tmp_path / "docs" / "results" / "cifar10-s.test.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(test))
    assert "## `cifar10-s`" in results_page(tmp_path)
    test["operating_points"][0]["thresholds"] = [0.123, 0.456]
    path.write_text(json.dumps(test))
    with pytest.raises(ValueError, match="another calibration"):
        results_page(tmp_path)


@pytest.mark.parametrize("page", [RESULTS, Path("docs/not-run.md"), Path("benchmarks/README.md")], ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert links
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
