"""The service's metrics and statistics: what all front ends have counted, asked for when somebody wants to know."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric

from msmlp.service.frontends.channel import Answer, Ask, Count, Counted
from msmlp.service.frontends.hosts import Hosts
from msmlp.service.frontends.place import Place
from msmlp.service.telemetry.metrics import engine_metrics
from msmlp.service.telemetry.totals import Totals

COUNT_SECONDS = 1.0
"""How long front ends may take to tell; one that takes longer counts with what it told last."""


class Scrapes:
    """The one owner of totals. `restarts`: front ends that died and are started anew."""

    def __init__(self, places: list[Place], hosts: Hosts) -> None:
        self._places, self._hosts, self._totals = places, hosts, Totals(shared_engine=bool(hosts))
        self._process = ProcessCollector(registry=None)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, dict[int, asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.restarts = 0

    def answer(self, place: Place, ask: Ask) -> None:
        """Begin to answer what a front end asks."""
        task = asyncio.create_task(self._answer(place, ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def counted(self, place: Place, counted: Counted) -> None:
        self._totals.update(place.index, counted.snapshot)
        self._told(place.index, self._waiting.get(counted.number, {}))

    def retire(self, place: Place) -> None:
        """A front end died: its counts stay."""
        self._totals.retire(place.index)
        for waiting in self._waiting.values():
            self._told(place.index, waiting)

    @staticmethod
    def _told(index: int, waiting: dict[int, "asyncio.Future[None]"]) -> None:
        if index in waiting and not waiting[index].done():
            waiting[index].set_result(None)

    async def _answer(self, place: Place, ask: Ask) -> None:
        await self._count()
        content: Any = self._totals.statistics(), self._totals.executions
        if ask.what == "metrics":
            content = self._totals.render(self._own())
        if place.channel is not None:
            place.channel.send(Answer(ask.number, content))

    async def _count(self) -> None:
        """Ask every front end that runs, and wait until all have told or a second is over."""
        number, loop = next(self._numbers), asyncio.get_running_loop()
        asked = [place for place in self._places if place.running]
        waiting = self._waiting[number] = {place.index: loop.create_future() for place in asked}
        for place in asked:
            if place.channel is not None:
                place.channel.send(Count(number))
        try:
            if waiting:
                await asyncio.wait(waiting.values(), timeout=COUNT_SECONDS)
        finally:
            del self._waiting[number]

    def _own(self) -> Iterator[Metric]:
        """The supervisor's own metrics."""
        text = "Front ends that died and were started anew."
        yield CounterMetricFamily("msmlp_frontend_restarts", text, self.restarts)
        yield from self._process.collect()
        if self._hosts:
            yield from engine_metrics(self._hosts)
