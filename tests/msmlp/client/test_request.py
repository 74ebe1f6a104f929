"""The options of the Python clients are those of the service."""

from typing import get_type_hints

from msmlp.client.request import Options
from msmlp.service.options import schemas

KINDS = {"array": str, "string": str, "number": float, "integer": int, "boolean": bool}


def test_a_client_takes_every_option_but_stream_which_is_a_method() -> None:
    hints = get_type_hints(Options)
    described = {name: KINDS[schema["type"]] for name, schema in schemas().items() if name != "stream"}
    assert set(hints) == set(described)
    for name, kind in described.items():
        assert {kind, type(None)} <= set(hints[name].__args__), name
