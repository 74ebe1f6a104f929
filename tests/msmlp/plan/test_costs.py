"""Costs are measured on this machine, kept in a file, and asked for by the command."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from msmlp.model.errors import DataError, WeightsError
from msmlp.model.weights import load_weights
from msmlp.plan import costs as measured
from msmlp.plan.costs import read_costs
from tests.msmlp.plan.conftest import BUCKETS, costs
from tests.processes import Call


@pytest.fixture
def kept(tiny_weights: Path, tmp_path: Path) -> Path:
    path = tmp_path / "costs.json"
    path.write_text(costs(name=load_weights(tiny_weights).manifest.name).model_dump_json())
    return path


@pytest.mark.system
def test_costs_are_measured_and_kept(
    tiny_weights: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measured, "SAMPLES", 2)
    monkeypatch.setattr(measured, "LOAD_SECONDS", 0.3)
    saved = tmp_path / "costs.json"
    assert call(*asked(tiny_weights), "--save-costs", saved) == 0
    printed = capsys.readouterr()
    assert "replicas needed: 1 core (onnx on cpu)" in printed.out
    assert "plan: measuring the stages" in printed.err
    found = read_costs(saved, load_weights(tiny_weights))
    assert found.layout == "inline"
    assert 0 < found.refusal_seconds <= found.request_seconds < 0.1
    for row in found.stage_seconds:
        assert row[-1] > row[0] > 0


@pytest.mark.system  # it takes ten seconds or more
def test_a_plan_from_costs_that_were_kept(
    tiny_weights: Path, kept: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "plan.html"
    assert call(*asked(tiny_weights), "--costs", kept, "--page", page) == 0
    assert "replicas needed: 1 core (onnx on cpu)" in capsys.readouterr().out
    assert page.stat().st_size > 10_000
    assert call(*asked(tiny_weights), "--costs", kept, "--json") == 0
    assert json.loads(capsys.readouterr().out)["replicas"] == 1
    assert call(*asked(tiny_weights), "--costs", kept, "--save-costs", kept) == 2
    assert "--save-costs: cannot be combined with --costs" in capsys.readouterr().err
    assert call(*asked(tiny_weights), "--costs", kept, "--p99-ms", "0.1", "--max-replicas", "2") == 1
    assert "2 replicas do not meet the goal" in capsys.readouterr().err
    assert call(*asked(tiny_weights), "--costs", kept, "--page", tmp_path / "none" / "plan.html") == 1
    assert "plan.html" in capsys.readouterr().err


def asked(weights: Path) -> tuple[str | Path, ...]:
    return ("plan", "--weights", weights, "--rate", "20", "--seconds", "5", "--p99-ms", "1000")


def test_what_is_no_file_of_costs(tiny_weights: Path, kept: Path, tmp_path: Path) -> None:
    weights = load_weights(tiny_weights)
    assert read_costs(kept, weights).buckets == BUCKETS
    with pytest.raises(DataError, match="does not exist; msmlp plan --save-costs"):
        read_costs(tmp_path / "none.json", weights)
    kept.write_text(costs(name="another").model_dump_json())
    with pytest.raises(DataError, match=r"was measured for another with 3 stages; expected .* with 3: measure again"):
        read_costs(kept, weights)
    kept.write_text("{}")
    with pytest.raises(WeightsError, match=r"costs\.json"):
        read_costs(kept, weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": (1, 2, 2, 4, 8)}, "buckets: expected strictly increasing sizes"),
        ({"stage_seconds": ((1.0,), (1.0,), (1.0,))}, "stage_seconds: expected 5 numbers per stage, one per bucket"),
        ({"request_seconds": float("inf")}, "request_seconds"),
        ({"permits": 0}, "permits"),
    ],
)
def test_costs_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        costs(**changes)
