"""All settings of the service: one frozen object, from options and `MSMLP_...` environment variables."""

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from msmlp.model.errors import OptionError, first_mistake
from msmlp.model.platform import cores
from msmlp.model.preprocess import MAX_PIXELS, PILLOW_MAX_PIXELS

DEFAULT_WEIGHTS = Path(str(files("msmlp"))).resolve() / "weights" / "cifar10-s"


def _count_or_auto(raw: Any) -> Any:
    try:
        if raw == "auto" or int(raw) >= 1:
            return raw
    except (TypeError, ValueError):
        pass
    raise ValueError("expected auto or a whole number of at least 1")


class Settings(BaseSettings):
    """Fields are options and variables: `max_batch` is `--max-batch` and `MSMLP_MAX_BATCH`."""

    model_config = SettingsConfigDict(env_prefix="MSMLP_", env_ignore_empty=True, frozen=True, extra="forbid")

    weights: Path = Field(default=DEFAULT_WEIGHTS, description="The weights folder to serve.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port for the Open Inference Protocol over gRPC, at the same address; 0 takes a free one. Needs "
        "the extra `grpc`.",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Another port at the same address, for /metrics, /livez and /readyz alone, without keys and TLS: "
        "for Prometheus and probes inside a network. 0 takes a free one.",
    )
    ssl_certfile: Path | None = Field(
        default=None,
        description="Serve HTTPS, and gRPC over TLS: the file of the server's certificate and the chain behind it, in "
        "PEM. Checked once a minute and reloaded when renewed. Needs --ssl-keyfile.",
    )
    ssl_keyfile: Path | None = Field(
        default=None, description="The file of the certificate's private key, in PEM, without a password."
    )
    cors_origins: str | None = Field(
        default=None,
        pattern=r"^(\*|https?://[^\s/,]+(,https?://[^\s/,]+)*)$",
        description="Origins whose pages may call the service from a browser, separated by commas, such as "
        "https://shop.example; * for any. By default none but its own.",
    )
    backend: Literal["auto", "torch", "onnx"] = Field(
        default="auto",
        description="What runs the stages. auto: torch on a GPU; on a CPU ONNX Runtime where the weights "
        "folder has graphs that match, else torch. An imported cascade always runs with ONNX Runtime.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU if there is one.")
    devices: str | None = Field(
        default=None,
        pattern=r"^(cpu|\d+)(,(cpu|\d+))*$",
        description="Several devices, each with an engine process of its own: numbers of GPUs, or cpu, separated by "
        "commas. Each request goes to the engine where it would wait the least, and the others go on where one fails "
        "for good. By default one, the device of --device.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        default="auto",
        description="auto: on a GPU bfloat16 with torch, float16 with ONNX Runtime where there are such graphs; on a "
        "CPU float32. int8 is for ONNX Runtime on a CPU.",
    )
    provider: Literal["auto", "cuda", "tensorrt"] = Field(
        default="auto", description="ONNX Runtime's execution provider on a GPU; auto: cuda."
    )
    frontends: Annotated[int | Literal["auto"], BeforeValidator(_count_or_auto)] = Field(
        default="auto",
        json_schema_extra={"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "const": "auto"}]},
        description="Processes that accept, decode and answer. auto: with an engine inside each, one per core, as far "
        "as memory, --max-bodies-bytes and --capacity allow (16 with their defaults); with one engine process, 1 on a "
        "CPU, and for a GPU half as many as cores, at most 8.",
    )
    engine: Literal["auto", "inline", "thread", "process"] = Field(
        default="auto",
        description="Where the stages run: inside each front end, in a thread of it, or in a separate process that is "
        "restarted when it dies; auto: a process for torch, on a GPU, and for stages of over 50 ms per image, else "
        "inline.",
    )
    max_batch: int = Field(default=64, ge=1, le=4096, description="Largest batch of a stage.")
    capacity: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Maximum number of images in flight; further images are answered with 429. By default as many as "
        "fit into a quarter of the device's free memory, at most 16384. Engines inside front ends divide it.",
    )
    policy: str = Field(default="balanced", description="Operating point of requests that select none.")
    max_wait_ms: float = Field(
        default=2000,
        ge=0,
        description="Longest predicted time to an answer at which images are admitted; more are answered 429; 0: no "
        "limit.",
    )
    brownout_ms: float = Field(
        default=500,
        ge=0,
        description="Wait above which requests get cheaper operating points (brown-out); 0: never. Capped at half of "
        "--max-wait-ms.",
    )
    shadow: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of early exits that also run to the last exit, to measure whether it agrees.",
    )
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=PILLOW_MAX_PIXELS,
        description="Most pixels (width x height) of an image; a JPEG of one scan that is decoded at a reduced scale "
        "counts what is decoded and a tenth of its pixels.",
    )
    max_request_pixels: int = Field(
        default=256_000_000,
        ge=1,
        description="Most pixels to decode for one request, over all its images; a JPEG decoded at an eighth of its "
        "size counts a 64th.",
    )
    max_images: int = Field(default=1024, ge=1, description="Most images of one request.")
    max_body_bytes: int = Field(default=64 * 2**20, ge=1, description="Largest request body.")
    max_json_bytes: int = Field(
        default=16 * 2**20,
        ge=1,
        description="Largest JSON part of a request, in bytes. Under /v2, tensors after the JSON do not count; over "
        "gRPC it limits numbers in contents.",
    )
    max_bodies_bytes: int = Field(
        default=2**30,
        ge=1,
        description="Bytes that all request bodies may hold together; beyond it requests are answered 429.",
    )
    head_seconds: float = Field(
        default=10,
        ge=0,
        description="How long the head of a request may take from its first byte, and the first head of a connection "
        "from when it was opened; then 408, or a close if nothing came. A TLS handshake before it may take as long. 0: "
        "no limit (60 s for a handshake).",
    )
    keep_alive_seconds: float = Field(
        default=75,
        ge=0,
        description="How long a connection may wait for its next request; longer than the proxy in front keeps its own "
        "(60 s with nginx and AWS). 0: no limit.",
    )
    body_seconds: float = Field(
        default=10,
        ge=0,
        description="Within any period of this length a body must arrive at 10 KB/s or more, or it is answered 408, "
        "and an answer must be read as fast. A message over gRPC, whose bytes cannot be seen, may take three times as "
        "long while no other waits. 0: no limit.",
    )
    request_seconds: float = Field(
        default=300,
        ge=0,
        description="How long a request may take from its head to the end of its answer; then 408 while its body is "
        "missing, else 503. 0: no limit.",
    )
    drain_seconds: float = Field(
        default=5,
        ge=0,
        description="How long after SIGTERM the service still takes requests though it says that it is not ready, so "
        "that load balancers leave first; Ctrl-C does not wait.",
    )
    shutdown_seconds: float = Field(
        default=30,
        ge=0,
        description="How long requests in flight may still take after the drain. The rest is refused with 503, and the "
        "exit status is 1.",
    )
    max_connections: int = Field(
        default=10_000,
        ge=1,
        description="Most open HTTP connections over all front ends; each front end has at most its limit on open "
        "files less 64. When all are in use, the one silent longest is closed; if none is silent, the new one gets "
        "503. gRPC may have as many again: each kind then gets half of the files, and a gRPC connection too many is "
        "closed.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="A file of the keys that requests need. One key per line, with optional limits per second: KEY "
        "[name=NAME] [requests=NUMBER] [pixels=NUMBER]. Read again when it changes. Without it, no key is required.",
    )
    admin_keys_file: Path | None = Field(
        default=None,
        description="A file like --api-keys-file for /admin, which does not exist without it. API keys do not open it.",
    )
    metrics_open: bool = Field(
        default=False, description="Serve /metrics without a key even where other paths need one."
    )
    decode_threads: int = Field(default=max(2, cores()), ge=1, description="Threads that decode images.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="text: lines for people; json: one JSON object per line."
    )
    access_log: bool = Field(
        default=False,
        description="Log a line per request, with its id, its images' exits and their cost; probes and scrapes only at "
        "level debug.",
    )
    traces: bool = Field(
        default=False,
        description="Send OpenTelemetry traces, with a span per stage; the variables OTEL_... set the destination and "
        "the sampling. Needs the extra `telemetry`.",
    )


OF_CLIENTS = {"MSMLP_API_KEY"}
"""Variables that msmlp's clients read, and a service on the same machine does not."""

REMOVED = {
    "triton_metrics": "removed in 0.2; use msmlp_requests_total and the other msmlp_ metrics (docs/operations.md)",
}
"""Settings of earlier versions, and what to use instead. They are refused as options and as variables."""


def option(name: str) -> str:
    """A setting as the command line writes it."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """A setting as the environment writes it."""
    return f"MSMLP_{name.upper()}"


def load_settings(written: Callable[[str], str] = option, /, **given: Any) -> Settings:
    """Settings from the environment and `given` (None means not given).

    Args:
        written: the name of a setting → how the caller writes it, for messages.
        given: settings that go before the environment.

    Raises:
        OptionError: names the first bad one.
    """
    for name, value in given.items():
        if value is not None or name not in REMOVED:
            _check_known(name, written(name), written)
    names = {variable(name): name for name in (*Settings.model_fields, *REMOVED)}
    for key, value in sorted(os.environ.items()):
        known = key in OF_CLIENTS or (names.get(key) in REMOVED and not value)
        if key.startswith("MSMLP_") and not known:
            _check_known(names.get(key), key, variable)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        place, wrong = first_mistake(error)
        name = place.partition(".")[0]
        raise OptionError(variable(name) if given.get(name) is None else written(name), wrong) from None


def _check_known(name: str | None, shown: str, written: Callable[[str], str]) -> None:
    """Raise for a setting that was removed or never existed; `shown` is what the caller wrote."""
    if name in REMOVED:
        raise OptionError(shown, REMOVED[name])
    if name not in Settings.model_fields:
        raise OptionError(shown, f"no such setting; expected one of {', '.join(map(written, Settings.model_fields))}")
