"""What the page is made from: weights folders, and the documents in docs/results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msmlp.model.report.run import Found, Run


@dataclass(frozen=True)
class Shipped:
    """A weights folder with the documents that were measured with it; None for what was not."""

    folder: Path
    manifest: dict[str, Any]
    calibration: dict[str, Any]
    test: dict[str, Any] | None
    bench: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name


@dataclass(frozen=True)
class Sources:
    """Everything there is under one root."""

    shipped: list[Shipped]
    runs: list[Run]
    benches: list[dict[str, Any]]
    pairs: list[dict[str, Any]]


def read_sources(root: Path) -> Sources:
    """Read `weights/*/` and `docs/results/` below `root`; ValueError where two of them do not fit together."""
    results = root / "docs" / "results"
    folders = sorted(path.parent for path in (root / "weights").glob("*/manifest.json"))
    found = [Found.model_validate_json(path.read_bytes()) for path in sorted((results / "runs").glob("*.json"))]
    return Sources(
        shipped=[_shipped(folder, results) for folder in folders],
        runs=[run for each in found for run in each.runs],
        benches=_documents(results, "*.bench*.json"),
        pairs=_documents(results, "*.pair.json"),
    )


def _shipped(folder: Path, results: Path) -> Shipped:
    documents = {kind: _document(results / f"{folder.name}.{kind}.json") for kind in ("test", "bench")}
    calibration = json.loads((folder / "calibration.json").read_text())
    test = documents["test"]
    ours = [(point["name"], point["thresholds"]) for point in calibration["operating_points"]]
    if test is not None and [(point["name"], point["thresholds"]) for point in test["operating_points"]] != ours:
        raise ValueError(f"{folder.name}.test.json is of another calibration: run msmlp evaluate --json again")
    return Shipped(folder, json.loads((folder / "manifest.json").read_text()), calibration, **documents)


def _documents(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def _document(path: Path) -> dict[str, Any] | None:
    document: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return document
