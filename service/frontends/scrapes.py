"""The service's metrics and statistics: what all front ends have counted, asked for when somebody wants to know."""

import asyncio
from collections.abc import Iterator
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric

from msmlp.service.engine.process.host import EngineHosts
from msmlp.service.frontends.line import Answer, Ask, Line
from msmlp.service.frontends.place import Place
from msmlp.service.telemetry.gauges import engine_metrics, log_lines_dropped
from msmlp.service.telemetry.metrics import RELOADS, RELOADS_TEXT
from msmlp.service.telemetry.totals import Totals

COUNT_SECONDS = 1.0
"""How long front ends may take to tell; one that takes longer counts with what it told last."""


class Scrapes:
    """The one owner of totals. `restarts`: front ends that died and are started anew; `reloads`: by outcome."""

    def __init__(self, places: list[Place], hosts: EngineHosts) -> None:
        self._places, self._hosts = places, hosts
        self.totals = Totals(shared_engine=bool(hosts.all), number=len(places))
        self._process = ProcessCollector(registry=None)
        self._asked: list[tuple[Place, Line | None, Ask]] = []
        self._task: asyncio.Task[None] | None = None
        self.restarts = 0
        self.reloads = dict.fromkeys(RELOADS, 0)

    def switch(self, places: list[Place], hosts: EngineHosts) -> None:
        """From now on these serve. Those before still count what they answer, but how they are is of no interest."""
        for place in self._places:
            self.totals.leave(place.number)
        for place in places:
            self.totals.arrive(place.number)
        self.totals.render(self._own())  # what the old engines have counted so far
        hosts.cpu_seconds = {**self._hosts.cpu_seconds, **hosts.cpu_seconds}
        self._places, self._hosts = [*places, *self._places], hosts
        self.totals.render(self._own())  # the new engines' counters begin at 0, which must be seen

    def forget(self, places: list[Place]) -> None:
        """They have ended."""
        self._places = [place for place in self._places if place not in places]

    def answer(self, place: Place, ask: Ask) -> None:
        """Begin to answer what a front end asks. Questions that come while others are answered share the next answer:
        it counts what happened before they came, and any number of them costs no more than one after the other."""
        self._asked.append((place, place.line, ask))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._answer())

    async def _answer(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            await asyncio.gather(*(self._count(each) for each in self._places if each.running))
            contents: dict[str, Any] = {}
            for place, line, ask in asked:
                if ask.what not in contents:
                    contents[ask.what] = self._content(ask.what)
                if line is not None and place.line is line:  # who asked has not ended since
                    line.send(Answer(ask.number, contents[ask.what]))

    def _content(self, what: str) -> Any:
        if what == "metrics":
            return self.totals.render(self._own())
        return self.totals.statistics(), self.totals.executions

    async def _count(self, place: Place) -> None:
        if place.line is None:  # it has ended since
            return
        snapshot = await place.line.ask("snapshot", COUNT_SECONDS)
        if snapshot is not None:
            self.totals.update(place.number, snapshot)

    def _own(self) -> Iterator[Metric]:
        """The supervisor's own metrics."""
        text = "Front ends that died and were started anew."
        yield CounterMetricFamily("msmlp_frontend_restarts", text, self.restarts)
        yield log_lines_dropped()
        reloads = CounterMetricFamily("msmlp_reloads", RELOADS_TEXT, labels=["outcome"])
        for outcome, number in self.reloads.items():
            reloads.add_metric([outcome], number)
        yield reloads
        yield from self._process.collect()
        if self._hosts.all:
            yield from engine_metrics(self._hosts)
