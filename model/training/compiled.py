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
        if imitates not in self._checked:
            self._checked.add(imitates)
            return self._compared(tensors, imitates)
        loss: Tensor = self._fast(tensors, imitates)
        return loss

    def _compared(self, tensors: list[Tensor], imitates: bool) -> Tensor:
        # The statistics of batch norms move once for a batch, whoever looks at it.
        before = {name: buffer.clone() for name, buffer in self.plain.named_buffers()}
        copies = {name: buffer.clone() for name, buffer in before.items()}
        with torch.no_grad():
            expected: Tensor = torch.func.functional_call(self.plain, copies, (tensors, imitates))
        try:
            loss: Tensor = self._fast(tensors, imitates)
        except Exception as error:  # compilers, and those that miss one, raise nearly anything
            what = f"could not be compiled ({type(error).__name__})"
        else:
            if torch.isclose(loss.detach(), expected, rtol=TOLERANCE, atol=TOLERANCE).item():
                return loss
            what = f"compiled, gives a loss of {loss.item():.4g} instead of {expected.item():.4g}"
        log.warning("the training step %s; it goes on uncompiled", what)
        self._fast, self._checked = self.plain, {False, True}
        for name, buffer in self.plain.named_buffers():
            buffer.copy_(before[name])
        again: Tensor = self.plain(tensors, imitates)
        return again
