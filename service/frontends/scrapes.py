"""The service's metrics and statistics: what all front ends have counted, asked for when somebody wants to know."""

import asyncio
from collections.abc import Iterator

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric

from msmlp.service.engine.process.host import EngineHosts
from msmlp.service.frontends.line import Answer, Ask
from msmlp.service.frontends.place import Place
from msmlp.service.telemetry.metrics import engine_metrics
from msmlp.service.telemetry.totals import Totals

COUNT_SECONDS = 1.0
"""How long front ends may take to tell; one that takes longer counts with what it told last."""


class Scrapes:
    """The one owner of totals. `restarts`: front ends that died and are started anew."""

    def __init__(self, places: list[Place], hosts: EngineHosts) -> None:
        self._places, self._hosts, self.totals = places, hosts, Totals(shared_engine=bool(hosts.all))
        self._process = ProcessCollector(registry=None)
        self._tasks: set[asyncio.Task[None]] = set()
        self.restarts = 0

    def answer(self, place: Place, ask: Ask) -> None:
        """Begin to answer what a front end asks."""
        task = asyncio.create_task(self._answer(place, ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, place: Place, ask: Ask) -> None:
        await asyncio.gather(*(self._count(each) for each in self._places if each.running))
        if place.line is not None:
            statistics = self.totals.statistics(), self.totals.executions
            content = self.totals.render(self._own()) if ask.what == "metrics" else statistics
            place.line.send(Answer(ask.number, content))

    async def _count(self, place: Place) -> None:
        assert place.line is not None
        snapshot = await place.line.ask("snapshot", COUNT_SECONDS)
        if snapshot is not None:
            self.totals.update(place.index, snapshot)

    def _own(self) -> Iterator[Metric]:
        """The supervisor's own metrics."""
        text = "Front ends that died and were started anew."
        yield CounterMetricFamily("msmlp_frontend_restarts", text, self.restarts)
        yield from self._process.collect()
        if self._hosts.all:
            yield from engine_metrics(self._hosts)
