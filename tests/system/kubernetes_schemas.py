"""Checks Kubernetes objects, in an environment of its own: JSON list on stdin, versions of Kubernetes as arguments.

Prints a JSON list of what is wrong. Kubernetes' own kinds are checked against its schemas, in which nothing unknown may
stand. Kinds of the Prometheus operator and of KServe are checked against the models that are generated from theirs.
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import cloudcoil.models.prometheus_operator.v1 as operator
import kserve
import kubernetes.client
import kubernetes_validate

PLAIN: dict[str, Any] = {"str": str, "int": int, "bool": bool, "object": object, "ResourceQuantity": (int, str)}
Object = dict[str, Any]


def faults(thing: Object, versions: list[str]) -> Iterator[str]:
    group, _, version = thing["apiVersion"].partition("/")
    if group == "monitoring.coreos.com":
        yield from unknown_to_operator(thing)
    elif group == "serving.kserve.io":
        yield from misfits(thing, f"{version.capitalize()}{thing['kind']}", thing["kind"])
    else:
        yield from misfits_of_kubernetes(thing, versions)


def misfits_of_kubernetes(thing: Object, versions: list[str]) -> Iterator[str]:
    for version in versions:
        try:
            checked = kubernetes_validate.validate(thing, version, strict=True)
            assert version.startswith(checked)  # it would take the newest before a version that it does not know
        except kubernetes_validate.ValidationError as error:
            place = ".".join(map(str, error.absolute_path))
            yield f"{thing['kind']} in Kubernetes {version}: {place}: {error.message}"


def unknown_to_operator(thing: Object) -> Iterator[str]:
    """The models say what is wrong with what they know, and drop the rest."""
    try:
        model = getattr(operator, thing["kind"]).model_validate(thing)
    except ValueError as error:
        yield f"{thing['kind']}: {error}"
        return
    kept = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
    yield from dropped(thing, kept, thing["kind"])


def dropped(given: object, kept: object, place: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            if name in kept:
                yield from dropped(value, kept[name], f"{place}.{name}")
            else:
                yield f"{place}: no field {name}"
    elif isinstance(given, list) and isinstance(kept, list):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from dropped(one, other, f"{place}.{number}")


def misfits(thing: Any, kind: str, place: str) -> Iterator[str]:
    """What of `thing` is not of `kind`, as the generated models write kinds: V1Probe, list[V1Probe], dict(str, str)."""
    many = re.fullmatch(r"(list|dict)[\[(](?:str, )?(.+)[\])]", kind, re.IGNORECASE)
    if many:
        items = thing.items() if many[1].lower() == "dict" else enumerate(thing)
        for name, item in items:
            yield from misfits(item, many[2], f"{place}.{name}")
    elif kind in PLAIN:
        # In Python a bool is an int, too.
        if not isinstance(thing, PLAIN[kind]) or (isinstance(thing, bool) and kind not in ("bool", "object")):
            yield f"{place}: {thing!r} is no {kind}"
    else:
        model = getattr(kserve, kind, None) or getattr(kubernetes.client, kind)
        names = {written: name for name, written in model.attribute_map.items()}
        for name, value in thing.items():
            if name in names:
                yield from misfits(value, model.openapi_types[names[name]], f"{place}.{name}")
            else:
                yield f"{place}: no field {name}"


if __name__ == "__main__":
    things = json.load(sys.stdin)
    json.dump([fault for thing in things for fault in faults(thing, sys.argv[1:])], sys.stdout)
