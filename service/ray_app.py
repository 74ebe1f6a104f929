"""The service as an application of Ray Serve: a replica is one front end with its engine, in a process of Ray's.

`build` makes the application, for `msmlp deploy ray` and for `import_path` in a Serve config (docs/ray.md). The package
ray is imported only there and inside replicas.
"""

import asyncio
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import uvicorn
from fastapi import APIRouter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msmlp.model.errors import DeviceError, MissingPackageError, OptionError, WeightsError, install_hint
from msmlp.model.platform import cores
from msmlp.service.deployment import NAME, PORTS, Deployment
from msmlp.service.engine.messages import Died, Outbound, Ready
from msmlp.service.http.app import UVICORN, create_app
from msmlp.service.http.browsers import EVERYWHERE
from msmlp.service.http.connection import Departure
from msmlp.service.http.ending import Ending
from msmlp.service.http.server import listen
from msmlp.service.logs import Logging
from msmlp.service.scaling import BUSY_SHARE, WAIT, Addresses
from msmlp.service.service import Service, build_service
from msmlp.service.telemetry.observers import trace_factory

log = logging.getLogger("msmlp.server")

ADDRESSES = "addresses"

START_SECONDS = 300.0
"""How long an engine may take to be ready."""

POLL_SECONDS = 0.02
FLUSH_SECONDS = 0.3
"""How long the last refusals may take to be sent."""

LAST_SECONDS = 10.0
"""What Ray allows a replica beyond the time for requests in flight: traces and threads end last."""

TELL_SECONDS = 2.0
"""Between two times that a replica tells its address."""

REQUESTS = 1000
"""The most requests in a replica at a time, and waiting for one in a proxy. Far more than fit: admission goes by
predicted seconds, and says when to come back; Ray's own limit knows only numbers."""

LOOK_BACK_SECONDS = 15.0
"""Over how long Ray averages what replicas report; it must be more than its 10 s between two reports."""


def build(deployed: Deployment) -> Any:
    """The Serve application of a deployment, not yet deployed.

    Raises:
        OptionError: fewer replicas at most than at least.
        MissingPackageError: ray is not installed.
    """
    try:
        import ray
        from ray import serve
        from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig, DeploymentActorConfig
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"Ray Serve needs the package {error.name}: {install_hint('serve,ray')}") from None
    deployed.check_replicas()
    settings = deployed.service_settings()
    direct = deployed.direct_port is not None
    listed = DeploymentActorConfig(name=ADDRESSES, actor_class=ray.remote(Addresses), actor_options={"num_cpus": 0})
    policy = AutoscalingPolicy(
        policy_function="msmlp.service.scaling:Policy", policy_kwargs={"target_wait": deployed.target_wait_ms / 1e3}
    )
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        ray_actor_options={"num_cpus": deployed.num_cpus, "num_gpus": deployed.num_gpus},
        max_ongoing_requests=REQUESTS,
        max_queued_requests=REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        autoscaling_config=AutoscalingConfig(
            min_replicas=deployed.min_replicas,
            max_replicas=deployed.max_replicas,
            upscale_delay_s=deployed.up_seconds,
            downscale_delay_s=deployed.down_seconds,
            look_back_period_s=LOOK_BACK_SECONDS,
            policy=policy,
        ),
        # A replica is taken out after three failures in a row.
        health_check_period_s=2,
        health_check_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.shutdown_seconds + direct * settings.drain_seconds + LAST_SECONDS,
        max_surge_percent=100,  # new replicas are ready before old ones end
        deployment_actors=[listed] if direct else None,
    )
    return deployment.bind(deployed.model_dump())


class Replica:
    """One replica. Ray calls `__serve_build_asgi_app__` first, and ends the lifespan of its app last; all on one loop:
    methods that were not async might come to a thread.
    """

    def __init__(self, deployed: dict[str, Any]) -> None:
        self._deployment = Deployment(**deployed)
        self._server: Server | None = None
        self._told: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app, once its engine is warm: Ray sends no request before.

        Raises:
            MsmlpError: settings, weights or a device that do not fit.
        """
        deployed = self._deployment
        settings = deployed.service_settings()
        Logging(settings.log_level, settings.log_format).begin()
        service = build_service(settings, share=max(1, round(cores() / deployed.num_cpus)))
        service.keys.watch(lambda _: None)  # they change in place
        if settings.traces:
            service.traces = trace_factory()(service.facts.model)
        version = service.facts.model["version"]
        if deployed.version not in ("", version):
            found, copied = (
                f"{settings.weights} on this node holds version {version}",
                "copy the deployed weights to every node",
            )
            raise WeightsError(f"{found}; expected {deployed.version}: {copied}")
        listener = None if deployed.direct_port is None else _listener(deployed.direct_port)
        self._server = Server(service, listener, [self._router()])
        await self._server.begin()
        self._gauge = Gauge(service, deployed.num_cpus)
        if listener is not None:
            self._told = asyncio.create_task(self._tell(listener))
        return Bridge(self._server.app, self._server.lifespan.state, self._end)

    async def check_health(self) -> None:
        """Raise EngineDownError once the engine is down for good, or the event loop stood still."""
        if self._server is not None:
            self._server.service.check_live()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scaling.Policy` goes by."""
        return self._gauge.read(time.monotonic(), time.thread_time(), time.process_time())

    async def _end(self) -> None:
        """Answer what is in flight, and end; Ray has routed requests elsewhere before."""
        assert self._server is not None
        if self._told is not None:
            self._told.cancel()
            with suppress(Exception):  # the list forgets it anyway
                await (await _addresses()).remove.remote(_replica_id())
        await self._server.end()

    def _router(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        if self._deployment.direct_port is not None:
            router.add_api_route("/replicas", _replicas, methods=["GET"])
        return router

    async def _tell(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        log.info("serving directly on %s", url)
        while True:
            with suppress(Exception):  # Ray starts an actor that has died again
                await (await _addresses()).put.remote(_replica_id(), url)
            await asyncio.sleep(TELL_SECONDS)


async def _replicas() -> dict[str, list[str]]:
    """The addresses of all replicas that listen by themselves."""
    return {"replicas": await (await _addresses()).all.remote()}


async def _addresses() -> Any:
    from ray import serve

    return await asyncio.to_thread(serve.get_deployment_actor, ADDRESSES)


def _replica_id() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


def _listener(first: int) -> socket.socket:
    """A listening socket at this node's address."""
    import ray

    host = ray.util.get_node_ip_address()
    if not first:
        return listen(host, 0, "direct_port")
    for port in range(first, first + PORTS):
        with suppress(OptionError):
            return listen(host, port, "direct_port")
    raise OptionError(
        "direct_port", f"no port from {first} to {first + PORTS - 1} is free at {host}; choose another first one"
    )


class Server(uvicorn.Server):
    """uvicorn around a service, whose engine lives as long as this does; it listens where it is told to, or nowhere."""

    def __init__(self, service: Service, listener: socket.socket | None, routers: Sequence[APIRouter] = ()) -> None:
        self.app = create_app(service, routers)
        super().__init__(uvicorn.Config(self.app, **UVICORN))
        self.service = service
        self._listeners = [] if listener is None else [listener]
        self._heard = asyncio.Event()
        self._died = ""
        service.engine.watch(self._hear)

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()  # they are Ray's

    async def begin(self) -> None:
        """Return once the engine is ready; DeviceError if it cannot be."""
        self._life = asyncio.create_task(self.serve(self._listeners))
        self._life.add_done_callback(lambda _: self._heard.set())
        try:
            await asyncio.wait_for(self._heard.wait(), START_SECONDS)
        except TimeoutError:
            self._died = f"the engine was not ready after {START_SECONDS:g} s"
        while not (self.started or self._life.done()):
            await asyncio.sleep(POLL_SECONDS)
        if self._died or self._life.done():
            raise DeviceError(self._died or "the service did not start; the log says why")

    def _hear(self, message: Outbound) -> None:
        if isinstance(message, Died) and not message.restarting:
            self._died = message.detail
        if isinstance(message, Ready) or self._died:
            self._heard.set()

    async def end(self) -> None:
        """Answer what is in flight, in `--shutdown-seconds`, refuse the rest, and stop the engine. Where it listens it
        still answers before, for `--drain-seconds`, but says that it is not ready."""
        self.service.draining = True
        if self._listeners:
            Ending(self.lifespan.state["msmlp_watch"], self.service.calls).drain()
            await asyncio.sleep(self.service.settings.drain_seconds)
        self.should_exit = True
        await self._life

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = Ending(self.lifespan.state["msmlp_watch"], self.service.calls)
        for server in self.servers:
            server.close()
        ending.close()
        until = time.monotonic() + self.service.settings.shutdown_seconds
        while ending.busy and time.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)
        if ending.busy:
            log.error("%d requests were in flight after --shutdown-seconds and got 503", ending.cut())
            await asyncio.sleep(FLUSH_SECONDS)
        await self.lifespan.shutdown()


class Gauge:
    """How loaded a replica of `cpus` cores is."""

    def __init__(self, service: Service, cpus: float) -> None:
        self._engine, self._cpus = service.engine, cpus
        self._before = (-math.inf, 0.0, 0.0, 0.0)

    def read(self, now: float, loop_cpu: float, cpu: float) -> dict[str, float]:
        """Call it from the event loop at intervals, with the CPU seconds of its thread and of the process so far.

        While brown-out lasts the wait is at least where that began: a degraded load may wait for nothing. Any of the
        device, the event loop's thread and the replica's cores may be the one that is short, so the busiest counts.
        """
        engine, load = self._engine, self._engine.worker.load
        work = load.work_seconds if load is not None else 0.0
        wait = engine.admission.wait(load) + engine.decode_backlog() if load is not None else 0.0
        if engine.level_now():
            wait = max(wait, engine.brownout.high)
        then, *before = self._before
        self._before = now, work, loop_cpu, cpu / self._cpus
        passed = max(now - then, 1e-3)
        spent = max(after - first for first, after in zip(before, self._before[1:], strict=True))
        return {WAIT: wait, BUSY_SHARE: min(1.0, max(0.0, spent / passed))}


class Bridge:
    """An app behind Ray's proxy, as plain ASGI: none of our connections is there to say that the client has left.

    Ray cancels a request then. It also has an id for each, which is ours, and sends it with every answer.
    """

    def __init__(self, app: ASGIApp, state: dict[str, Any], end: Callable[[], Awaitable[None]]) -> None:
        """`state` is what the app's lifespan has made, and `end` ends that."""
        self._app, self._state, self._end = app, state, end
        self._headers = [(name.encode(), value.encode()) for name, value in EVERYWHERE.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # the app's own began before
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._end()
            await send({"type": "lifespan.shutdown.complete"})
            return
        departure = Departure()
        state = {**self._state, "msmlp_departure": departure}
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        request = {**scope, "state": state, "path": path, "root_path": ""}
        work = asyncio.ensure_future(self._app(request, receive, self._sender(send)))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            departure.end()
            await asyncio.wait([work], timeout=FLUSH_SECONDS)
            work.cancel()
            raise

    def _sender(self, send: Send) -> Send:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [each for each in message["headers"] if each[0] != b"x-request-id"]
                message = {**message, "headers": [*headers, *self._headers]}
            await send(message)

        return answer
