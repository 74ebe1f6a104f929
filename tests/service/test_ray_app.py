"""A replica's app, server, health and load, without Ray; on a cluster in tests/ray."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message

from msmlp.model.errors import DeviceError, OptionError, WeightsError
from msmlp.service.deployment import Deployment
from msmlp.service.engine.messages import Load
from msmlp.service.errors import EngineDownError
from msmlp.service.http.server import listen
from msmlp.service.ray_app import Bridge, Gauge, Replica, Server
from msmlp.service.scaling import BUSY_SHARE, WAIT
from msmlp.service.service import Service
from tests.fakes import PATIENCE_SECONDS, FakeBackend, picture
from tests.servers import encoded, fake_backend, fake_service

IMAGE = encoded(picture(1.0, label=3, size=32))
PNG = {"Content-Type": "image/png"}


async def nothing() -> None:
    pass


def server_open(url: str) -> bool:
    try:
        httpx.get(f"{url}/livez", timeout=0.01)
    except httpx.ConnectError:
        return False
    except httpx.TimeoutException:  # this loop cannot answer now
        return True
    raise AssertionError


async def until(true: Callable[[], bool]) -> None:
    for _ in range(PATIENCE_SECONDS * 100):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://ray")


class Served:
    """A service on a fake backend in a running `Server`."""

    def __init__(self, weights: Path, **settings: Any) -> None:
        self.backend: FakeBackend = fake_backend()
        self.service: Service = fake_service(weights, lambda: self.backend, **{"drain_seconds": 0, **settings})

    @asynccontextmanager
    async def running(self, *, listening: bool = False) -> AsyncIterator["Served"]:
        listener = listen("127.0.0.1", 0) if listening else None
        self.server = Server(self.service, listener)
        await self.server.begin()
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}" if listener else ""
        self.bridge = Bridge(self.server.app, self.server.lifespan.state, nothing)
        try:
            yield self
        finally:
            if not self.server.should_exit:
                await self.server.end()


def in_a_loop(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), PATIENCE_SECONDS)

    asyncio.run(limited())


def test_answers_are_the_services_without_what_the_proxy_adds(tiny_weights: Path) -> None:
    async def test() -> None:
        async with Served(tiny_weights).running() as served, client_of(served.bridge) as client:
            answer = await client.post("/classify", content=IMAGE, headers={**PNG, "X-Request-ID": "mine"})
            assert (answer.status_code, answer.json()["request_id"]) == (200, "mine")
            assert answer.json()["results"][0]["class_id"] == 3
            assert "X-Request-ID" not in answer.headers
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            refused = await client.post("/classify", content=b"none", headers=PNG)
            assert (refused.status_code, refused.json()["code"]) == (422, "undecodable_image")
            assert refused.headers["X-Content-Type-Options"] == "nosniff"
            missing = await client.get("/nothing")
            assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
            assert (await client.get("/v2/health/ready")).status_code == 200
            lines = (await client.post("/classify?stream=true", content=IMAGE, headers=PNG)).text.splitlines()
            assert len(lines) > 0

    in_a_loop(test)


def test_below_a_prefix_paths_are_the_same(tiny_weights: Path) -> None:
    async def test() -> None:
        async with Served(tiny_weights).running() as served:
            transport = httpx.ASGITransport(app=served.bridge, root_path="/vision")
            async with httpx.AsyncClient(transport=transport, base_url="http://ray") as client:
                answer = await client.post("/vision/classify", content=IMAGE, headers=PNG)
                assert answer.status_code == 200, answer.text

    in_a_loop(test)


async def ask(app: ASGIApp, *messages: Message) -> list[Message]:
    """A request whose client sends `messages` and then waits → what it is answered."""
    sent: list[Message] = []
    coming = list(messages)

    async def receive() -> Message:
        if coming:
            return coming.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"image/png")]
    scope = {"type": "http", "method": "POST", "path": "/classify", "query_string": b"", "headers": headers}
    await app({**scope, "http_version": "1.1", "scheme": "http", "server": ("ray", 80), "root_path": ""}, receive, send)
    return sent


def body(content: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_client_that_leaves_takes_its_images_out_of_the_engine(tiny_weights: Path) -> None:
    async def test() -> None:
        async with Served(tiny_weights).running() as served:
            with served.backend.gate.held():
                asking = asyncio.create_task(ask(served.bridge, body(IMAGE)))
                await until(lambda: served.service.engine.admission.inflight == 1)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                assert served.service.engine.admission.inflight == 0
            text = served.service.metrics.render().decode()
            assert 'msmlp_requests_total{route="/classify",status="499"} 1.0' in text

    in_a_loop(test)


def test_a_client_that_leaves_amid_its_body_gives_its_bytes_back(tiny_weights: Path) -> None:
    async def test() -> None:
        async with Served(tiny_weights).running() as served:
            budget = served.service.body_budget
            asking = asyncio.create_task(ask(served.bridge, body(IMAGE, more=True)))
            await until(lambda: budget.free < budget.limit)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await until(lambda: budget.free == budget.limit)

    in_a_loop(test)


def test_the_end_of_the_apps_life_ends_the_server() -> None:
    async def test() -> None:
        ended: list[str] = []
        sent: list[str] = []

        async def end() -> None:
            ended.extend(sent)

        async def receive() -> Message:
            return {}

        async def send(message: Message) -> None:
            sent.append(message["type"])

        async def app(*_: Any) -> None:
            raise AssertionError("its own life has begun before")

        await Bridge(app, {}, end)({"type": "lifespan"}, receive, send)
        assert (sent, ended) == (
            ["lifespan.startup.complete", "lifespan.shutdown.complete"],
            ["lifespan.startup.complete"],
        )

    in_a_loop(test)


def test_at_the_end_what_is_in_flight_is_answered_and_nothing_else(tiny_weights: Path) -> None:
    async def test() -> None:
        served = Served(tiny_weights)
        async with served.running(listening=True), httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            with served.backend.gate.held():
                asking = asyncio.create_task(client.post("/classify", content=IMAGE, headers=PNG))
                await until(lambda: served.service.engine.admission.inflight == 1)
                ending = asyncio.create_task(served.server.end())
                await until(lambda: served.server.should_exit)
                while server_open(served.url):
                    await asyncio.sleep(0.01)
                assert not asking.done()
            answer = await asking
            assert answer.status_code == 200
            assert answer.headers["Connection"] == "close"
            await ending

    in_a_loop(test)


def test_before_the_end_it_answers_but_says_that_it_is_not_ready(tiny_weights: Path) -> None:
    async def test() -> None:
        served = Served(tiny_weights, drain_seconds=3600)
        async with served.running(listening=True), httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            assert (await client.get("/readyz")).status_code == 200
            ending = asyncio.create_task(served.server.end())
            await until(lambda: served.service.draining)
            assert (await client.get("/readyz")).json()["code"] == "draining"
            answer = await client.post("/classify", content=IMAGE, headers=PNG)
            assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
            ending.cancel()
            served.server.should_exit = True
            await served.server._life

    in_a_loop(test)


def test_what_takes_too_long_at_the_end_is_refused(tiny_weights: Path) -> None:
    async def test() -> None:
        served = Served(tiny_weights, shutdown_seconds=0)
        async with served.running(listening=True), httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            with served.backend.gate.held():
                asking = asyncio.create_task(client.post("/classify", content=IMAGE, headers=PNG))
                await until(lambda: served.service.engine.admission.inflight == 1)
                ending = asyncio.create_task(served.server.end())
                answer = await asking
                assert (answer.status_code, answer.json()["code"]) == (503, "draining")
            await ending

    in_a_loop(test)


def test_an_engine_that_cannot_start_is_an_error_that_says_why(tiny_weights: Path) -> None:
    def broken() -> FakeBackend:
        raise OptionError("--device", "there is no such thing")

    async def test() -> None:
        server = Server(fake_service(tiny_weights, broken), None)
        with pytest.raises(DeviceError, match="--device: there is no such thing"):
            await server.begin()
        await server.end()

    in_a_loop(test)


def test_a_replica_is_unhealthy_once_its_engine_is_down(tiny_weights: Path) -> None:
    async def test() -> None:
        async with Served(tiny_weights).running() as served, client_of(served.bridge) as client:
            replica = Replica({})
            await replica.check_health()  # it is starting
            replica._server = served.server
            await replica.check_health()

            def fail(*_: Any) -> None:
                raise DeviceError("broken")

            served.backend.fail = fail
            while not served.service.engine.down:
                assert (await client.post("/classify", content=IMAGE, headers=PNG)).status_code == 503
            with pytest.raises(EngineDownError):
                await replica.check_health()

    in_a_loop(test)


def test_a_replica_serves_the_weights_that_were_deployed(tiny_weights: Path) -> None:
    async def test() -> None:
        deployed = Deployment(settings={"weights": str(tiny_weights), "max_batch": 2, "drain_seconds": 0})
        with pytest.raises(WeightsError, match="expected another"):
            await Replica(deployed.model_copy(update={"version": "another"}).model_dump()).__serve_build_asgi_app__()
        app: Any = await Replica(deployed.model_dump()).__serve_build_asgi_app__()
        async with client_of(app) as client:
            answer = await client.post("/classify", content=IMAGE, headers=PNG)
            assert answer.json()["model"]["name"] == tiny_weights.name
            assert (await client.get("/replicas")).status_code == 404
        await app._end()

    in_a_loop(test)


def test_keys_that_have_changed_count_in_a_replica_too(tiny_weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{'a' * 20} name=first\n")

    async def test() -> None:
        settings = {"weights": str(tiny_weights), "drain_seconds": 0, "api_keys_file": str(file), "traces": True}
        app: Any = await Replica(Deployment(settings=settings).model_dump()).__serve_build_asgi_app__()
        async with client_of(app) as client:

            async def status(key: str) -> int:
                headers = {**PNG, "Authorization": f"Bearer {key * 20}"}
                return (await client.post("/classify", content=IMAGE, headers=headers)).status_code

            assert [await status("a"), await status("b")] == [200, 401]
            file.write_text(f"{'b' * 20} name=second\n")
            for _ in range(PATIENCE_SECONDS * 10):
                if await status("b") == 200:
                    break
                await asyncio.sleep(0.1)
            assert [await status("a"), await status("b")] == [401, 200]
        await app._end()

    in_a_loop(test)


def engine(load: Load | None, level: int = 0) -> Any:
    admission = SimpleNamespace(wait=lambda load: load.backlog_seconds)
    return SimpleNamespace(
        worker=SimpleNamespace(load=load),
        admission=admission,
        decode_backlog=lambda: 0.125,
        brownout=SimpleNamespace(high=0.5),
        level_now=lambda: level,
    )


def load_of(backlog: float, work: float) -> Load:
    return Load((0,), (0.0,), backlog_seconds=backlog, work_seconds=work)


@pytest.mark.parametrize(
    ("work", "loop_cpu", "cpu", "busy"),
    [(1.5, 0.2, 0.4, 0.75), (0.2, 1.0, 0.4, 0.5), (0.2, 0.2, 3.2, 0.8), (9.0, 0.0, 0.0, 1.0), (-5.0, 0.0, 0.0, 0.0)],
    ids=["the device", "the event loop", "the cores", "never more than all", "an engine that began anew"],
)
def test_a_replica_is_as_busy_as_its_busiest_resource(work: float, loop_cpu: float, cpu: float, busy: float) -> None:
    service = SimpleNamespace(engine=engine(load_of(1.0, 7.0)))
    gauge = Gauge(service, cpus=2)  # type: ignore[arg-type]
    assert gauge.read(100.0, 5.0, 50.0) == {WAIT: 1.125, BUSY_SHARE: 0.0}
    service.engine.worker.load = load_of(1.0, 7.0 + work)
    assert gauge.read(102.0, 5.0 + loop_cpu, 50.0 + cpu)[BUSY_SHARE] == pytest.approx(busy)


def test_what_is_browned_out_counts_as_waiting() -> None:
    service: Any = SimpleNamespace(engine=engine(load_of(0.0, 0.0), level=1))
    assert Gauge(service, 1).read(0.0, 0.0, 0.0)[WAIT] == 0.5
    service.engine = engine(load_of(2.0, 0.0), level=1)
    assert Gauge(service, 1).read(0.0, 0.0, 0.0)[WAIT] == 2.125


def test_an_engine_that_is_not_ready_has_no_load() -> None:
    service: Any = SimpleNamespace(engine=engine(None))
    assert Gauge(service, 1).read(0.0, 0.0, 0.0) == {WAIT: 0.0, BUSY_SHARE: 0.0}
