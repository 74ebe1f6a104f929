"""The queue against a plain list."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from msmlp.service.engine.tickets import Fifo


class Replay(RuleBasedStateMachine):
    @initialize(capacity=st.integers(1, 9))
    def begin(self, capacity: int) -> None:
        self.capacity = capacity
        self.fifo = Fifo(capacity)
        self.plain: list[int] = []
        self.next = 0

    @rule(data=st.data())
    def push(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, self.capacity - len(self.plain)))
        new = list(range(self.next, self.next + count))
        self.next += count
        self.fifo.push(np.array(new, dtype=np.int64))
        self.plain += new

    @rule(data=st.data())
    def pop(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(self.plain)))
        assert self.fifo.pop(count).tolist() == self.plain[:count]
        self.plain = self.plain[count:]

    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        staying = data.draw(st.lists(st.booleans(), min_size=len(self.plain), max_size=len(self.plain)))
        left = self.fifo.keep(np.array(staying, dtype=bool))
        assert left.tolist() == [slot for slot, stays in zip(self.plain, staying, strict=True) if not stays]
        self.plain = [slot for slot, stays in zip(self.plain, staying, strict=True) if stays]

    @invariant()
    def same(self) -> None:
        assert self.fifo.slots.tolist() == self.plain
        assert len(self.fifo) == len(self.plain)


TestReplay = Replay.TestCase


def test_what_left_is_a_copy() -> None:
    fifo = Fifo(2)
    fifo.push(np.array([1, 2]))
    left = fifo.pop(2)
    for slot in range(10, 14):
        fifo.push(np.array([slot]))
        fifo.pop(1)
    assert left.tolist() == [1, 2]
