"""Writes the service's settings into the schema of the Helm chart's values: `make docs`.

So Helm refuses a setting that is none, or is out of its range, by name and before anything is started.
"""

import json
from pathlib import Path
from typing import Any

from msmlp.service.settings import Settings

SCHEMA = Path(__file__).resolve().parents[1] / "docker" / "helm" / "msmlp" / "values.schema.json"
BY_OTHER_VALUES = {"weights", "host", "port", "grpc_port"}
"""Settings that the chart sets: they follow from weights, service and grpc."""
KEPT = {"type", "enum", "minimum", "maximum", "description"}
"""Not the default, which depends on the machine."""


def filled(text: str) -> str:
    """The schema with the settings of now."""
    schema = json.loads(text)
    described = Settings.model_json_schema()["properties"]
    schema["properties"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _rule(described[name]) for name in described if name not in BY_OTHER_VALUES},
    }
    return json.dumps(schema, indent=2) + "\n"


def _rule(described: dict[str, Any]) -> dict[str, Any]:
    # What may be none has its rule beside the one for null, which Helm takes for a value that is not there.
    described = {**described, **described.get("anyOf", [{}])[0]}
    return {key: value for key, value in described.items() if key in KEPT}


if __name__ == "__main__":
    SCHEMA.write_text(filled(SCHEMA.read_text()))
