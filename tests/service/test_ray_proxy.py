"""What the proxy answers for a replica that has died; a real one dies in tests/ray."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from msmlp.service.ray_proxy import LOST, middlewares


def asked(app: Any, path: str) -> httpx.Response:
    [lost] = middlewares()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=lost.cls(app))  # type: ignore[call-arg]
        async with httpx.AsyncClient(transport=transport, base_url="http://ray") as client:
            return await client.post(path, headers={"X-Request-ID": "mine"})

    return asyncio.run(ask())


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    pass


def test_nothing_said_is_503_as_of_a_service_whose_engine_is_down() -> None:
    response = asked(silent, "/classify")
    assert (response.status_code, response.headers["Retry-After"], response.headers["X-Request-ID"]) == (
        503,
        "1",
        "mine",
    )
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert (problem["code"], problem["detail"], problem["request_id"]) == ("engine_down", LOST, "mine")


def test_in_the_form_of_the_paths_clients() -> None:
    response = asked(silent, "/v2/models/msmlp/infer")
    assert (response.status_code, response.json()) == (503, {"error": LOST})


def test_an_answer_passes() -> None:
    response = asked(PlainTextResponse("no", 418), "/classify")
    assert (response.status_code, response.text) == (418, "no")


def test_what_the_app_raises_passes() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        asked(fails, "/classify")
