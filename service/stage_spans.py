"""What each stage did for a request, and when: from the times that the engine took of every image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from msmlp.service.account import Landed


@dataclass(frozen=True)
class StageSpan:
    """What one stage did for a request; seconds from the moment its images were decoded."""

    begins: float
    ends: float
    attributes: Mapping[str, Any]


def stage_spans(landed: list[Landed]) -> Iterator[StageSpan]:
    """The stages that images of a request have passed: from the first that waited for it to the last that it answered.

    An image waits for a stage from the end of the one before, so its times add up.
    """
    if not landed:
        return
    exits = np.concatenate([part.exit for part in landed])
    queue, compute = np.moveaxis(np.concatenate([part.history.seconds for part in landed]).astype(float), -1, 0)
    batches = np.concatenate([part.history.batch_size for part in landed])
    for stage in range(exits.max(initial=0)):
        here = exits > stage
        ends = (queue + compute)[here, : stage + 1].sum(axis=1)
        begins = ends - queue[here, stage] - compute[here, stage]
        yield StageSpan(
            float(begins.min()),
            float(ends.max()),
            {
                "msmlp.stage": stage + 1,
                "msmlp.images": int(here.sum()),
                "msmlp.exited": int((exits == stage + 1).sum()),
                "msmlp.queue_ms": _ms(queue[here, stage].max()),
                "msmlp.compute_ms": _ms(compute[here, stage].max()),
                "msmlp.batch_size": int(batches[here, stage].max()),
            },
        )


def _ms(seconds: float) -> float:
    return round(1e3 * float(seconds), 3)
