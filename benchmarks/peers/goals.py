"""What was asked for, and what was reached."""

from collections.abc import Callable
from operator import ge, le
from typing import Any

from benchmarks.peers.bare import BARE
from benchmarks.peers.servers import OURS, PEERS

PLAIN, CASCADE = "exits off", "cascade"
Row = dict[str, Any]


def goals(rows: list[Row], at: int) -> list[Row]:
    """Each goal with what was wanted, what was reached (None: not measured) and whether that is enough.

    Speeds are compared at `at` connections, with the fastest peer there; a p99 with the lowest that any peer has at
    that number of connections, whatever its speed.
    """
    speed, p99 = _by_place(rows, "requests_per_second"), _by_place(rows, "p99_ms")
    plain, cascade = speed.get((PLAIN, OURS, at)), speed.get((CASCADE, OURS, at))
    found = [
        _goal(f"{PLAIN}, {at} connections: requests/s over {BARE}", ge, 0.9, plain, speed.get((PLAIN, BARE, None))),
        _goal(
            f"{PLAIN}, {at} connections: requests/s over the best peer", ge, 1.5, plain, _peers(speed, PLAIN, at, max)
        ),
        _goal(
            f"{CASCADE}, {at} connections: requests/s over the best peer",
            ge,
            3,
            cascade,
            _peers(speed, CASCADE, at, max),
        ),
    ]
    for case in (PLAIN, CASCADE):
        for count in sorted({row["connections"] for row in rows if row["connections"] is not None}):
            what = f"{case}, {count} connections: p99 over the lowest of any peer"
            found.append(_goal(what, le, 0.5, p99.get((case, OURS, count)), _peers(p99, case, count, min)))
    return found


Places = dict[tuple[str, str, int | None], float]


def _by_place(rows: list[Row], name: str) -> Places:
    found = {(row["case"], row["server"], row["connections"]): row.get(name) for row in rows}
    return {place: value for place, value in found.items() if value is not None}


def _peers(places: Places, case: str, connections: int, best: Callable[[list[float]], float]) -> float | None:
    found = [places[place] for peer in PEERS if (place := (case, peer.name, connections)) in places]
    return best(found) if found else None


def _goal(
    what: str, enough: Callable[[float, float], bool], wanted: float, ours: float | None, other: float | None
) -> Row:
    ratio = ours / other if ours is not None and other else None
    return {
        "goal": what,
        "wanted": f"{'at least' if enough is ge else 'at most'} {wanted:g}",
        "reached": None if ratio is None else round(ratio, 3),
        "met": ratio is not None and enough(ratio, wanted),
    }
