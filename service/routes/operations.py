"""`/livez`, `/readyz`, `/metrics`, `/model`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from service.engine.facade import DOWN
from service.errors import EngineDownError
from service.openapi import PROBLEMS
from service.state import Service, service_of

router = APIRouter()
ServiceDep = Annotated[Service, Depends(service_of)]
_NOT_NOW: dict[int | str, dict[str, Any]] = {503: PROBLEMS[503]}


@router.get("/livez", responses=_NOT_NOW)
async def livez(service: ServiceDep) -> dict[str, bool]:
    """Whether the process is worth keeping: 503 once the engine has died."""
    if service.engine.down:
        raise EngineDownError(DOWN)
    return {"live": True}


@router.get("/readyz", responses=_NOT_NOW)
async def readyz(service: ServiceDep) -> dict[str, bool]:
    """Whether requests are served now; 503 says why not."""
    service.check_ready()
    return {"ready": True}


@router.get("/model")
async def model(service: ServiceDep) -> dict[str, Any]:
    """The model served: cascade, costs, frontier, provenance."""
    return service.describe()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: ServiceDep) -> Response:
    """Prometheus text."""
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
