"""The other front ends and the supervisor, as one front end sees them."""

import asyncio
import itertools
from typing import Any

from msmlp.service.errors import EngineDownError
from msmlp.service.frontends.board import Board
from msmlp.service.frontends.channel import Answer, Ask, Channel

ANSWER_SECONDS = 5.0
"""How long the supervisor may take; it waits a second for other front ends itself."""


class Peers:
    """Of front end `index`. `rate`, the images per second of all others, is kept up to date by its heartbeat."""

    def __init__(self, board: Board, index: int, channel: Channel) -> None:
        self._board, self._index, self._channel = board, index, channel
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self.rate = 0.0

    @property
    def any_ready(self) -> bool:
        return self._board.any_ready

    def look(self) -> None:
        self.rate = self._board.rate_beside(self._index)

    async def ask(self, what: str) -> Any:
        """The service's `metrics` (text) or `statistics`; EngineDownError if the supervisor does not answer."""
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._channel.send(Ask(number, what))
        try:
            return await asyncio.wait_for(answer, ANSWER_SECONDS)
        except TimeoutError:
            raise EngineDownError("the supervisor does not answer") from None
        finally:
            del self._asked[number]

    def answered(self, answer: Answer) -> None:
        waiting = self._asked.get(answer.number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.content)
