"""ModelInfer, and the half of it that a stream of requests shares."""

from dataclasses import dataclass
from typing import Any

from msmlp.model.errors import OptionError
from msmlp.service.grpc.calls import unhurried
from msmlp.service.grpc.messages import ModelInferRequest, parse, read_inference, write_response
from msmlp.service.inference import Call, run
from msmlp.service.oip.request import Inference
from msmlp.service.oip.service import answer_head, answer_tensors, check_model, limits
from msmlp.service.options import parse_options
from msmlp.service.service import Service
from msmlp.service.telemetry.record import Account


@dataclass(frozen=True)
class Question:
    """A request that can be answered: the model's name as it was asked for, and what it asks."""

    name: str
    inference: Inference
    call: Call


async def infer_once(service: Service, content: bytes, account: Account) -> Any:
    """The bytes of a ModelInferRequest → its one answer."""
    message = await unhurried(len(content), lambda: parse(ModelInferRequest, content))
    question = await understood(service, message, len(content), account)
    if question.call.options.stream:
        raise OptionError("stream", "ModelInfer answers once, ModelStreamInfer streams; allowed: false")
    return await answer(service, question)


async def understood(service: Service, message: Any, size: int, account: Account) -> Question:
    """A ModelInferRequest of so many bytes, taken apart; raises all that can be wrong with it."""
    account.rename(message.id)
    check_model(service, message.model_name, message.model_version or None)
    inference = await unhurried(size, lambda: read_inference(message, limits(service)))
    options = parse_options(inference.options)
    return Question(message.model_name, inference, Call(inference.images, options, account))


async def answer(service: Service, question: Question) -> Any:
    """Classify its images; raises what `run` raises."""
    outcome = await run(service, question.call)
    head = answer_head(service, question.name, question.inference, outcome.inquiry)
    return write_response(head, answer_tensors(service, question.inference, outcome.result))
