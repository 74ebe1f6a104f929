"""`POST /admin/reload`. Only those in service/http/gate.py come here: without `--admin-keys-file` it does not exist."""

from typing import Any

from fastapi import APIRouter, Request

from msmlp.service.http.responses import ServiceDep, while_connected

router = APIRouter(include_in_schema=False)  # for those who run the service; docs/http.md describes it


@router.post("/admin/reload")
async def reload(request: Request, service: ServiceDep) -> dict[str, Any]:
    """Load the weights folder anew; answered once every new request is answered with what it holds. Without a client,
    or an answer in time, it goes on.
    """
    return await while_connected(request, service.reload())
