"""Which front end a request belongs to, and the engine's messages by front end. Pure.

The engine's number of a request is its front end's number in the high bits, and the front end's own number of the
request below.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from msmlp.service.engine.messages import Answers, CancelRange, Died, Failed, Outbound, Ready

BITS = 40
"""A front end may number 10^12 requests, and an engine's process 8 million connections."""

_OWN = (1 << BITS) - 1


def number(peer: int, request: int) -> int:
    """The engine's number of a front end's request."""
    return peer << BITS | request


def all_of(peer: int) -> CancelRange:
    return CancelRange(number(peer, 0), number(peer + 1, 0))


def split(messages: Iterable[Outbound], peers: Iterable[int]) -> dict[int, list[Outbound]]:
    """What each of the front ends `peers` is to be told, those left out that have nothing to hear.

    Answers and failures go to those whose requests they concern, Ready and Died to all, and what only counts
    something to one of those who hear anything, or to the first.
    """
    told: dict[int, list[Outbound]] = defaultdict(list)
    here, counts, to_all = list(peers), list[Outbound](), list[Outbound]()
    for message in messages:
        if isinstance(message, Answers):
            for peer, rows in _rows(message.request):
                told[peer].append(_answers(message, rows))
        elif isinstance(message, Failed):
            for peer, rows in _rows(message.requests):
                told[peer].append(Failed(message.requests[rows] & _OWN, message.detail, message.shed))
        elif isinstance(message, Ready | Died):
            to_all.append(message)
        else:
            counts.append(message)
    listening = {peer: told[peer] for peer in here if told[peer] or to_all}
    if counts and here:
        listening.setdefault(next(iter(listening), here[0]), []).extend(counts)
    return {peer: said + to_all for peer, said in listening.items()}


def _rows(requests: NDArray[np.int64]) -> Iterator[tuple[int, slice | NDArray[np.int64]]]:
    peers = requests >> BITS
    if not len(peers):
        return
    if (peers == peers[0]).all():
        yield int(peers[0]), slice(None)
        return
    for peer in np.unique(peers).tolist():
        yield peer, np.flatnonzero(peers == peer)


def _answers(message: Answers, rows: slice | NDArray[np.int64]) -> Answers:
    return Answers(
        message.request[rows] & _OWN,
        message.index[rows],
        message.exit[rows],
        message.reason[rows],
        message.probabilities[rows],
        message.history[rows],
    )
