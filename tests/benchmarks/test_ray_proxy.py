"""The figures of benchmarks/ray_proxy.py; it runs by hand, for Ray."""

from itertools import cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import ray_proxy
from benchmarks.ray_proxy import BARE, DIRECT, PROXY, measure
from msmlp.model.errors import DeviceError

SERVERS = {BARE: "http://bare", PROXY: "http://proxy", DIRECT: "http://direct"}


class Generator:
    """A generator in this process that measures nothing: rounds of known speeds, the first to warm up."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._scale = cycle((9, 1, 2, 4))

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, _: Any, load: Any) -> Any:
        if load.url == "http://bare":
            self._now = next(self._scale)
        slower = {"http://bare": 1, "http://proxy": 4, "http://direct": 2}[load.url]
        latencies = [slower * self._now / 1e3] * (1200 // slower // self._now)
        percentiles = 1e3 * np.percentile(latencies, (50, 95, 99))
        seen = SimpleNamespace(latencies=latencies, seconds=1.0, statuses=STATUSES, percentiles_ms=lambda: percentiles)
        return SimpleNamespace(result=lambda: seen)


STATUSES = {"200": 1}


@pytest.fixture(autouse=True)
def _no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_proxy, "ProcessPoolExecutor", Generator)
    monkeypatch.setattr(ray_proxy, "image_size", lambda _: 32)


def test_rows_have_medians_and_ratios_within_each_round() -> None:
    bare, proxy, direct = measure(SERVERS, connections=8, seconds=2.0, rounds=3)
    assert (bare["requests_per_second"], bare["p50_ms"], bare["p99_ms"]) == (600, 2, 2)
    assert (bare["requests_per_second_ratio"], bare["p99_ms_ratio"]) == (1, 1)
    assert (proxy["server"], proxy["connections"], proxy["requests_per_second"]) == (PROXY, 8, 150)
    assert (proxy["requests_per_second_ratio"], proxy["p50_ms_ratio"], proxy["p99_ms_ratio"]) == (0.25, 4, 4)
    assert (direct["requests_per_second_ratio"], direct["p50_ms_ratio"]) == (0.5, 2)


def test_what_is_not_answered_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATUSES, "429", 1)
    with pytest.raises(DeviceError, match="msmlp serve answers"):
        measure(SERVERS, connections=8, seconds=2.0, rounds=1)
