"""The Open Inference Protocol of a running service: what REST and gRPC both say and do."""

from typing import Any

from msmlp.model.errors import MsmlpError
from msmlp.service.answers import Inquiry
from msmlp.service.engine.result import Result
from msmlp.service.errors import UnknownModelError
from msmlp.service.oip.model import ALIAS, Shapes, model_configuration, model_metadata
from msmlp.service.oip.request import Inference, Limits
from msmlp.service.oip.response import Tensor, output_tensors
from msmlp.service.service import Service


def check_model(service: Service, name: str, version: str | None) -> None:
    """Raise UnknownModelError for a name that is not the served model's, or a version (if any) that is not its."""
    model = service.facts.model
    if name not in (model["name"], ALIAS) or version not in (None, model["version"]):
        asked = ascii(name[:100]) + (f" version {version[:40]!a}" if version else "")
        raise UnknownModelError(f"there is no model {asked}; there is {model['name']}, also called {ALIAS}")


def metadata(service: Service, name: str) -> dict[str, Any]:
    """The model's tensors."""
    return model_metadata(name, service.facts.model["version"], _shapes(service))


def configuration(service: Service, name: str) -> dict[str, Any]:
    """The model's configuration in Triton's form."""
    return model_configuration(name, service.max_images, _shapes(service))


def statistics(service: Service, name: str) -> dict[str, Any]:
    """What was served since the start."""
    executions = service.metrics.executions
    return {"model_stats": [service.statistics.document(name, service.facts.model["version"], executions)]}


def repository_index(service: Service, *, ready_only: bool) -> list[dict[str, Any]]:
    """The one model there is, in Triton's form; not while it is not ready, where only such are asked for."""
    try:
        service.check_ready()
    except MsmlpError as error:
        return [] if ready_only else [{**service.facts.model, "state": "UNAVAILABLE", "reason": str(error)}]
    return [{**service.facts.model, "state": "READY"}]


def limits(service: Service) -> Limits:
    """What a request may hold."""
    return Limits(service.max_images, service.settings.max_pixels)


def answer_head(service: Service, name: str, inference: Inference, inquiry: Inquiry) -> dict[str, Any]:
    """What an answer says besides its outputs."""
    plan = inquiry.plan
    point = {"operating_point": plan.name} if plan.name else {}
    return {
        "model_name": name,
        "model_version": service.facts.model["version"],
        "id": inference.id or inquiry.request_id,
        "parameters": {**point, "source": plan.source},
    }


def answer_tensors(service: Service, inference: Inference, result: Result) -> list[Tensor]:
    """The outputs that were asked for, of the images of `result`."""
    return output_tensors(result, inference.outputs, service.facts.classes, service.facts.gflops)


def _shapes(service: Service) -> Shapes:
    return Shapes(service.weights.manifest.cascade.image_size, len(service.facts.classes))
