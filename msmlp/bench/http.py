"""`msmlp bench http`: real servers over real sockets, the product beside the least that a server does, in one run."""

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx

from msmlp.bench import alone
from msmlp.bench.bodies import TENSOR, images_in_flight
from msmlp.bench.generator import offer
from msmlp.bench.processes import Server, image_size, is_ready, server_process
from msmlp.bench.runs import HttpOptions, Progress, Row, Runs
from msmlp.model.errors import DeviceError, MsmlpError

SERVE = "from msmlp.main import main; main()"


class UnreachableError(MsmlpError):
    """No service answers at the URL."""


def bench_http(options: HttpOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Measure. Servers take turns within each round, so that what disturbs the machine disturbs all.

    The load comes from a process of its own, whose CPU time each row tells: near 1 of a core it is what is measured.

    Raises:
        UnreachableError, DeviceError: no service at the URL, or none that is ready; a server that did not start.
    """
    progress = progress or Progress()
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack, ProcessPoolExecutor(1, mp_context=context) as generator:
        servers = list(_servers(options, progress, stack))
        engines = {} if options.url else _engines(options, stack)
        bench = Runs(options, progress, lambda load: generator.submit(offer, load).result(), engines)
        bench.prepare(servers)
        closed = bench.closed_loops()
        opened = bench.open_loops(closed)
    return {
        "url": options.url,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "load": closed + opened,
        "ratios": _ratios(closed),
    }


def _servers(options: HttpOptions, progress: Progress, stack: ExitStack) -> Iterator[Server]:
    if options.url is not None:
        yield _running(options.url.rstrip("/"))
        return

    def start(name: str, *arguments: str) -> Server:
        return stack.enter_context(server_process(name, list(arguments), progress.say))

    room = [f"--capacity={_capacity(options)}", "--port=0", "--host=127.0.0.1"]
    room += [] if options.weights is None else [f"--weights={options.weights}"]
    real = start("real", "-c", SERVE, "serve", *room)
    yield start("reference", "-m", "msmlp.bench.reference_server", str(image_size(real.url)))
    yield start("null", "-m", "msmlp.bench.null_server", *room)
    yield real


def _capacity(options: HttpOptions) -> int:
    """Room for what the closed loops have in flight: what is shed would be compared with what is answered."""
    return max(1024, images_in_flight(options.bodies, options.connections))


def _engines(options: HttpOptions, stack: ExitStack) -> dict[str, Callable[[int, float], float]]:
    """The servers' engines without HTTP, each in a process of its own; none where nothing is compared with them."""
    if TENSOR not in options.bodies:
        return {}

    def engine(null: bool) -> Callable[[int, float], float]:
        pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")))
        pool.submit(alone.start, options.weights, _capacity(options), null).result()
        stack.callback(lambda: pool.submit(alone.end).result())
        return lambda submissions, seconds: pool.submit(alone.images_per_second, submissions, seconds).result()

    return {"null": engine(null=True), "real": engine(null=False)}


def _running(url: str) -> Server:
    if not is_ready(url):
        try:
            status = httpx.get(f"{url}/readyz").status_code
        except httpx.HTTPError:
            raise UnreachableError(f"nothing answers at {url}; start it with msmlp serve, or leave out --url") from None
        raise DeviceError(f"the service at {url} is not ready (status {status})")
    return Server("service", url, None)


def _ratios(closed: list[Row]) -> list[Row]:
    """What share of the reference's requests a second the product reaches, without a device and with it."""
    speeds: defaultdict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for row in closed:
        speeds[row["body"], row["connections"]][row["server"]] = row["requests_per_second"]
    return [
        {"body": body, "connections": count}
        | {f"{name}_over_reference": round(speed[name] / speed["reference"], 3) for name in ("null", "real")}
        for (body, count), speed in speeds.items()
        if speed.get("reference")
    ]
