"""`msmlp deploy ray`: the service on a Ray cluster, or the Serve config for it. Ray is imported when it runs."""

import inspect
import logging
import os
import socket
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from msmlp.model.errors import MissingPackageError, MsmlpError, OptionError, first_mistake, install_hint
from msmlp.service.cli import FIELDS, parameter_of
from msmlp.service.deployment import NAME, OF_RAY, PATHS, Deployment

CONTROLLER = "SERVE_CONTROLLER_ACTOR"
"""The actor that exists while Serve runs."""

CONNECT_SECONDS = 5.0
POLL_SECONDS = 0.2

app = typer.Typer(name="deploy", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _deploy() -> None:
    """Serve on a cluster."""


def ray(
    address: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the cluster; auto: the one on this machine. Run this on a node of the cluster."
        ),
    ] = "auto",
    host: Annotated[
        str, typer.Option(help="Address on which Ray's proxies listen; ignored if Serve already runs.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port on which Ray's proxies listen; ignored if Serve already runs.")
    ] = 8000,
    wait_seconds: Annotated[float, typer.Option(min=0, help="Seconds to wait until all replicas are ready.")] = 600,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the config for `serve deploy`, and deploy nothing.")
    ] = False,
    **given: Any,
) -> None:
    """Serve a weights folder with Ray Serve. An earlier deployment is replaced without downtime.

    msmlp must be installed on every node, and the weights folder must be at the same path on all. The settings of
    `msmlp serve` that concern a replica are options here too.

    \b
    Examples:
      msmlp deploy ray --max-replicas 4
      msmlp deploy ray --weights /shared/mine --num-gpus 1 --host 0.0.0.0
      msmlp deploy ray --weights /shared/mine --print-config > serve.yaml
    """
    deployment, http = _deployment(given), {"host": host, "port": port}
    if print_config:
        typer.echo(_yaml(deployment.serve_config(http)), nl=False)
    else:
        where = _deploy_now(deployment, address, http, wait_seconds)
        typer.echo(f"msmlp: {deployment.version} is served{where}", err=True)


def _deployment(given: dict[str, Any]) -> Deployment:
    """What the options say, checked here: a mistake should not first show on a node.

    Raises:
        CallerError: options or weights that do not fit.
    """
    from msmlp.model.weights import load_calibration, load_weights, model_version
    from msmlp.service.operating_points import OperatingPoints

    given = {name: value for name, value in given.items() if value is not None}
    settings = {name: given.pop(name) for name in [*given] if name in FIELDS}
    try:
        deployment = Deployment(settings=settings, **given)
    except ValidationError as error:
        place, wrong = first_mistake(error)
        raise OptionError(_option(place), wrong) from None
    try:
        deployment.check_replicas()
        wanted = deployment.service_settings()
        weights = load_weights(wanted.weights)
        calibration = load_calibration(weights)
        OperatingPoints(calibration, weights.manifest.gflops_cumulative, wanted.policy)
    except OptionError as error:
        raise OptionError(_option(error.name), str(error).removeprefix(f"{error.name}: ")) from None
    version = model_version(weights, calibration)
    # Nodes have other working folders.
    paths = {name: str(Path(settings[name]).resolve()) for name in PATHS if name in settings}
    return deployment.model_copy(update={"version": version, "settings": {**settings, **paths}})


def _option(name: str) -> str:
    return name if name.isupper() else "--" + name.replace("_", "-")


def _yaml(document: dict[str, Any]) -> str:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    return str(yaml.safe_dump(document, sort_keys=False))


def _missing(error: ModuleNotFoundError) -> MissingPackageError:
    return MissingPackageError(f"msmlp deploy ray needs the package {error.name}: {install_hint('serve,ray')}")


def _deploy_now(deployment: Deployment, address: str, http: dict[str, Any], seconds: float) -> str:
    """Deploy, and return once every replica that there must be is ready → where, if Serve has begun with it.

    Raises:
        OptionError: no cluster at `address`.
        MsmlpError: it is not ready; what was served before goes on.
    """
    try:
        import ray
        from ray import serve

        from msmlp.service.ray_app import build
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    application = build(deployment)
    _check_address(address)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, ignore_reinit_error=True)
    except (ConnectionError, ValueError) as error:
        raise _no_cluster(address, error) from None
    begins = CONTROLLER not in (each["name"] for each in ray.util.list_named_actors(all_namespaces=True))
    if begins:
        serve.start(proxy_location="EveryNode", http_options=http)
    target = serve.RunTarget(application, name=NAME, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    wait_until_ready(serve, seconds)
    return f" on http://{http['host']}:{http['port']}" if begins else ""


def _check_address(address: str) -> None:
    """OptionError if nothing listens there: Ray would try for ever."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "auto":
        return  # Ray looks at the processes of this machine
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise OptionError("--address", f"{address!r} is not an address; expected HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> OptionError:
    where = "on this machine" if address == "auto" else f"at {address}"
    return OptionError("--address", f"no Ray cluster {where} ({error}); start one with: ray start --head")


def wait_until_ready(serve: Any, seconds: float) -> None:
    """MsmlpError if the application that `serve` (Ray's module) deploys does not run after `seconds`, or cannot."""
    end = time.monotonic() + seconds
    while (application := serve.status().applications[NAME]).status != "RUNNING":
        deployed = application.deployments.get(NAME)
        said = (deployed.message if deployed else "") or application.message
        if application.status == "DEPLOY_FAILED":  # with the replica's traceback, which ends with what was raised
            raise MsmlpError(f"Ray could not deploy the service: {said.strip().splitlines()[-1]}")
        if time.monotonic() >= end:
            why = said or application.status.value
            raise MsmlpError(
                f"not ready after {seconds:g} s (--wait-seconds); Ray keeps trying, see serve status: {why}"
            )
        time.sleep(POLL_SECONDS)


def _signature() -> inspect.Signature:
    own = [
        each for each in inspect.signature(ray).parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    of_ray = {name: field for name, field in Deployment.model_fields.items() if name not in ("settings", "version")}
    of_service = {name: field for name, field in FIELDS.items() if name not in OF_RAY}
    return inspect.Signature([*own, *(parameter_of(*item) for item in {**of_ray, **of_service}.items())])


ray.__signature__ = _signature()  # type: ignore[attr-defined]
app.command()(ray)
