"""What `msmlp deploy ray` puts on a cluster: its options, which are the `args` of a Serve config. No web packages."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from msmlp.model.errors import OptionError

if TYPE_CHECKING:
    from msmlp.service.settings import Settings

NAME = "msmlp"
"""Of the application and of its deployment."""

OF_RAY = {
    **dict.fromkeys(("host", "port"), "Ray's proxy listens"),
    **dict.fromkeys(("ssl_certfile", "ssl_keyfile"), "TLS ends at Ray's proxy"),
    **dict.fromkeys(("grpc_port", "metrics_port"), "replicas on one node would share it; see direct_port"),
    **dict.fromkeys(("devices", "frontends"), "Ray counts replicas, each with its share of a node"),
    "admin_keys_file": "Ray rolls new weights out: deploy again",
}
"""Settings of `msmlp serve` that make no sense in a replica, and why."""

PATHS = "weights", "api_keys_file"

PORTS = 100
"""How many ports a node has for its replicas, from `direct_port` on."""


class Deployment(BaseModel):
    """`settings` are those of `msmlp serve`, by name, for every replica; `version` is what the weights folder must hold
    on every node, if it is not empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any] = {}
    version: str = ""
    num_cpus: float = Field(default=1, gt=0, description="CPU cores of a replica.")
    num_gpus: float = Field(default=0, ge=0, description="GPUs of a replica; 0.5 puts two replicas on a GPU.")
    min_replicas: int = Field(default=1, ge=1, description="Fewest replicas.")
    max_replicas: int = Field(default=1, ge=1, description="Most replicas.")
    target_wait_ms: float = Field(
        default=250,
        gt=0,
        description="Predicted wait above which replicas are added; below --brownout-ms, to come first.",
    )
    up_seconds: float = Field(
        default=10, ge=0, description="How long more replicas must be wanted before they are added."
    )
    down_seconds: float = Field(default=300, ge=0, description="How long fewer must suffice before the rest is ended.")
    direct_port: int | None = Field(
        default=None,
        ge=0,
        le=65535 - PORTS,
        description="Each replica also listens by itself, on the first free port of its node from this one on; 0: any. "
        "GET /replicas lists their addresses.",
    )

    def service_settings(self) -> "Settings":
        """The settings of a replica here: those given, then the environment.

        Raises:
            OptionError: one that is bad, or not for replicas.
        """
        from msmlp.service.settings import load_settings

        for name in OF_RAY:
            if name in self.settings:
                raise OptionError(name, f"not with Ray Serve: {OF_RAY[name]}")
        own = {"decode_threads": max(2, math.ceil(self.num_cpus)), "device": "cuda" if self.num_gpus else "cpu"}
        paths = {name: Path(self.settings[name]) for name in PATHS if name in self.settings}
        return load_settings(str, **{**own, **self.settings, **paths})

    def check_replicas(self) -> None:
        """OptionError for a range that is none."""
        if self.max_replicas < self.min_replicas:
            raise OptionError(
                "max_replicas", f"{self.max_replicas}; expected min_replicas ({self.min_replicas}) or more"
            )

    def serve_config(self, http: dict[str, Any]) -> dict[str, Any]:
        """The document for `serve deploy`, with the proxies' options `http`; what has its default is left out."""
        application = {
            "name": NAME,
            "route_prefix": "/",
            "import_path": "msmlp.service.ray_app:build",
            "args": self.model_dump(exclude_defaults=True),
        }
        return {"proxy_location": "EveryNode", "http_options": http, "applications": [application]}
