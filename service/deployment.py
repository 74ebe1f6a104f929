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
    **dict.fromkeys(
        ("host", "port"), "set them in http_options of the Serve config, or with msmlp deploy ray --host and --port"
    ),
    **dict.fromkeys(("ssl_certfile", "ssl_keyfile"), "set TLS up in front of Ray's proxy"),
    **dict.fromkeys(("grpc_port", "metrics_port"), "replicas on one node would share the port; use direct_port"),
    **dict.fromkeys(
        ("devices", "frontends"), "a replica has one front end and one device; use max_replicas, num_cpus and num_gpus"
    ),
    "admin_keys_file": "to change weights, deploy again",
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
    num_cpus: float = Field(default=1, gt=0, description="CPU cores that each replica reserves.")
    num_gpus: float = Field(default=0, ge=0, description="GPUs of each replica; with 0.5 two replicas share a GPU.")
    min_replicas: int = Field(default=1, ge=1, description="Smallest number of replicas.")
    max_replicas: int = Field(
        default=1, ge=1, description="Largest number of replicas; nothing scales while it equals --min-replicas."
    )
    target_wait_ms: float = Field(
        default=250,
        gt=0,
        description="Mean predicted wait, in ms, above which replicas are added. Keep it below --brownout-ms, so that "
        "replicas come before brown-out.",
    )
    up_seconds: float = Field(
        default=10, ge=0, description="Seconds for which more replicas must be needed before they are added."
    )
    down_seconds: float = Field(
        default=300, ge=0, description="Seconds for which fewer must be enough before the surplus is stopped."
    )
    direct_port: int | None = Field(
        default=None,
        ge=0,
        le=65535 - PORTS,
        description="Each replica also listens on a port of its own, at its node's address, without TLS: the first "
        "free port from this one on; 0: any. GET /replicas lists the addresses.",
    )

    def service_settings(self) -> "Settings":
        """The settings of a replica here: those given, then the environment. `device` and `decode_threads` never come
        from the environment: by default they follow num_gpus and num_cpus.

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
        """OptionError if max_replicas is below min_replicas."""
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
