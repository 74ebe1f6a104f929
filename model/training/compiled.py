"""A compiled objective, believed when it says what the plain one says.

Compilers are wrong at times: torch 2.13 compiled the bf16 training of a cascade on a CPU into code whose loss is NaN. A
run of hours is not to hang on that.
"""

import logging
from typing import cast

import torch
from torch import Tensor, nn

TOLERANCE = 0.05
"""Relative difference of the two losses that bf16 explains."""

log = logging.getLogger(__name__)


class Compiled(nn.Module):
    """`plain`, compiled; compared on the first batch with and without imitation, and given up where they differ."""

    def __init__(self, plain: nn.Module, compiled: nn.Module | None = None) -> None:
        super().__init__()
        self.plain = plain
        self._fast = cast(nn.Module, torch.compile(plain)) if compiled is None else compiled
        self._checked: set[bool] = set()

    def forward(self, tensors: list[Tensor], imitates: bool) -> Tensor:
        """See Objective."""
        loss: Tensor = self._fast(tensors, imitates)
        if imitates in self._checked:
            return loss
        self._checked.add(imitates)
        with torch.no_grad():
            expected: Tensor = self.plain(tensors, imitates)
        if torch.isclose(loss.detach(), expected, rtol=TOLERANCE, atol=TOLERANCE).item():
            return loss
        log.warning("compiled, the loss is %.4g instead of %.4g; training goes on uncompiled", loss, expected)
        self._fast, self._checked = self.plain, {False, True}
        again: Tensor = self.plain(tensors, imitates)
        return again
