"""`/livez`, `/readyz`, `/metrics`, `/model`, `/docs`, and the playground at `/`."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from msmlp.service.http.openapi import PROBLEMS
from msmlp.service.http.responses import ServiceDep, while_connected
from msmlp.service.http.schemas import Live, ModelDescription, Ready

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PAGE_HEADERS = {
    # Pictures are shown from `blob:`, and Swagger UI's style sheet holds its icons as `data:`. All else comes from
    # this server, and no other site may frame the page.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Revalidated each time (304 by the ETag), so that an old page never meets a new version of the server.
    "Cache-Control": "no-cache",
}

router = APIRouter()
# The package fastapi-offline is only where Swagger UI comes from.
_files = StaticFiles(packages=[("msmlp.service", "ui"), ("fastapi_offline", "static")])
_NOT_NOW: dict[int | str, dict[str, Any]] = {503: PROBLEMS[503]}
_METRICS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "All metrics, with their help texts",
        "content": {
            "text/plain": {"schema": {"type": "string"}, "example": 'msmlp_images_total{exit="1",reason="confident"} 7'}
        },
    }
}


@router.get("/livez", response_model=Live, responses=_NOT_NOW)
async def livez(service: ServiceDep) -> dict[str, bool]:
    """Whether the process should keep running: 503 once the engine is down for good, or after the loop stood still."""
    service.check_live()
    return {"live": True}


@router.get("/readyz", response_model=Ready, responses=_NOT_NOW)
async def readyz(service: ServiceDep) -> dict[str, bool]:
    """Whether requests are accepted now; 503 says why not."""
    service.check_any_ready()
    return {"ready": True}


@router.get("/model", response_model=ModelDescription)
async def model(service: ServiceDep) -> Response:
    """The model served: architecture, costs, operating points, provenance."""
    return JSONResponse(service.describe())


@router.get("/metrics", response_class=Response, responses=_METRICS)
async def metrics(request: Request, service: ServiceDep) -> Response:
    """All metrics in the Prometheus text format."""
    return Response(await while_connected(request, service.metrics_text()), media_type=METRICS_TYPE)


@router.get("/docs", response_class=HTMLResponse)
async def docs(request: Request) -> Response:
    """The API documentation for people; /openapi.json is for programs."""
    return await _page("docs.html", request)


@router.get("/", include_in_schema=False)
@router.get("/ui/{name}", include_in_schema=False)
async def playground(request: Request) -> Response:
    return await _page(request.path_params.get("name", "index.html"), request)


async def _page(name: str, request: Request) -> Response:
    response = await _files.get_response(name, request.scope)
    response.headers.update(PAGE_HEADERS)
    return response
