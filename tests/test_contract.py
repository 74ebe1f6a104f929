"""tests/contract.md, the table from the contract to its tests: whole, and true."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import typer

from msmlp.main import app
from msmlp.service.errors import STATUS
from msmlp.service.http.schemas import Answer, ImageAnswer, OperatingPointAnswer, Problem, StageReport
from msmlp.service.options import RequestOptions
from msmlp.service.settings import Settings
from msmlp.service.telemetry.metrics import Metrics

ROOT = Path(__file__).resolve().parents[1]
TABLE = (ROOT / "tests" / "contract.md").read_text()
ROWS = [line.strip("|").split(" | ") for line in TABLE.splitlines() if line.startswith("|") and "---" not in line]
LINES = [row for row in ROWS if row[0].strip() != "line"]
NAMES = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]*)`", " ".join(row[0] for row in LINES)))))


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_no_row_is_empty() -> None:
    assert len(LINES) > 100
    for row in LINES:
        assert len(row) == 2, row
        assert row[0].strip(), row
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", row[1]), row


def test_every_test_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", TABLE)
    missing = [f"{path}::{name}" for path, name in named if name not in functions(ROOT / path)]
    assert not missing


def commands() -> list[str]:
    group = typer.main.get_command(app)
    return sorted(group.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("command", commands()),
        ("option", list(RequestOptions.model_fields)),
        ("field of an answer", [*Answer.model_fields, *ImageAnswer.model_fields, *StageReport.model_fields]),
        ("field of an operating point", list(OperatingPointAnswer.model_fields)),
        ("field of an error", list(Problem.model_fields)),
        ("error code", sorted({code for _, code in STATUS.values()})),
        ("setting", list(Settings.model_fields)),
        ("metric", sorted(family.name for family in Metrics((1, 2, 3), "any", "1").registry.collect())),
    ],
)
def test_nothing_of_the_product_is_missing(kind: str, names: list[str]) -> None:
    missing = [name for name in names if not {name, f"{name}_total"} & NAMES]
    assert not missing, f"{kind}s that no row names"
