import ast
import json
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

import msmlp.service.errors as service_errors
from msmlp.model.errors import (
    DeviceError,
    ImageTooLargeError,
    MsmlpError,
    OptionError,
    TrainingStoppedError,
    UndecodableImageError,
    WeightsError,
)
from msmlp.service.errors import STATUS, BadImagesError, MalformedBodyError, problem


def leaves(kind: type[MsmlpError]) -> Iterator[type[MsmlpError]]:
    """What a server can raise; `msmlp` and the benchmarks stand above it, with errors of their own."""
    below = [each for each in kind.__subclasses__() if each.__module__.startswith(("msmlp.model", "msmlp.service"))]
    if not below or kind in (DeviceError, TrainingStoppedError):  # raised itself too
        yield kind
    for each in below:
        yield from leaves(each)


LEAVES = sorted(set(leaves(MsmlpError)), key=lambda kind: kind.__name__)


def test_both_trees_are_seen() -> None:
    assert {MalformedBodyError, WeightsError, OptionError, DeviceError} <= set(LEAVES)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_has_a_status(kind: type[MsmlpError]) -> None:
    """BadImagesError takes its first image's, which is a leaf of its own."""
    assert (kind in STATUS) != (kind is BadImagesError)


def test_the_table_holds_leaves_only() -> None:
    assert set(STATUS) <= set(LEAVES)


def test_every_code_means_one_status() -> None:
    statuses: dict[str, set[int]] = {}
    for status, code in STATUS.values():
        statuses.setdefault(code, set()).add(int(status))
    assert all(len(found) == 1 for found in statuses.values())


def test_no_status_code_but_in_the_table() -> None:
    """One table maps errors to HTTP: no other module of the service raises an HTTP error of its own."""
    for path in Path(service_errors.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                assert "HTTPException" not in ast.unparse(node.exc), path


def test_a_problem_document() -> None:
    status, document = problem(MalformedBodyError("the body is not JSON"), "id-1")
    assert status == HTTPStatus.BAD_REQUEST
    assert document == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "the body is not JSON",
        "code": "malformed_body",
        "request_id": "id-1",
    }


def test_bad_images_are_listed_and_the_first_gives_the_status() -> None:
    too_large, damaged = ImageTooLargeError("9x9 is too large"), UndecodableImageError("damaged PNG image")
    status, document = problem(BadImagesError([(3, too_large), (7, damaged)]), "id-1")
    assert (int(status), document["code"]) == (413, "image_too_large")
    assert document["errors"] == [
        {"index": 3, "code": "image_too_large", "detail": "9x9 is too large"},
        {"index": 7, "code": "undecodable_image", "detail": "damaged PNG image"},
    ]
    status, document = problem(BadImagesError([(7, damaged)]), "id-1")
    assert (int(status), document["code"], document["detail"]) == (422, "undecodable_image", "damaged PNG image")


@pytest.mark.parametrize("kind", [kind for kind, (status, _) in STATUS.items() if status == 500])
def test_a_fault_of_the_server_is_not_shown_to_clients(kind: type[MsmlpError]) -> None:
    status, document = problem(kind("/home/someone/weights is damaged at line 7"), "id-1")
    assert status == 500
    assert "someone" not in json.dumps(document)
