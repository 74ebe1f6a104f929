"""`serve` over a backend that is quick to start, and whose next start the file `fault` beside the weights decides:
python reloading.py WEIGHTS FRONTENDS ENGINE [setting=value ...].

`slow`: it takes until the file is gone. `hung`: so does looking at the weights. `broken`, `dead`: the device does not
start, the process ends. A number: that many bytes of memory are free.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from msmlp.model.backends.select import Selection
from msmlp.model.errors import DeviceError
from msmlp.model.weights import Weights
from msmlp.service.frontends import reload
from msmlp.service.http.server import serve
from msmlp.service.service import build_service
from msmlp.service.settings import Settings
from tests.fakes import PATIENCE_SECONDS
from tests.service.frontends.hanging import Hanging


def fault_of(folder: Path) -> str:
    file = folder.parent / "fault"
    return file.read_text() if file.exists() else ""


def wait_while(folder: Path, fault: str) -> None:
    until = time.monotonic() + 2 * PATIENCE_SECONDS
    while fault_of(folder) == fault and time.monotonic() < until:
        time.sleep(0.02)


def build(folder: Path, stages: int) -> Hanging:
    wait_while(folder, "slow")
    if fault_of(folder) == "broken":
        raise DeviceError("the device is broken")
    if fault_of(folder) == "dead":
        os._exit(3)
    return Hanging(stages=stages, classes=10, size=32, capacity=64)


def select(weights: Weights, *_: Any) -> Selection:
    if fault_of(weights.folder) == "hung":
        sys.stderr.write("the folder hangs\n")
        wait_while(weights.folder, "hung")
    return Selection("fake", "cpu", "", partial(build, weights.folder, len(weights.manifest.cascade.stages)))


if __name__ == "__main__":
    from msmlp.main import _fail
    from msmlp.model.errors import MsmlpError

    weights, frontends, engine, *words = sys.argv[1:]
    fault = partial(fault_of, Path(weights))
    free = reload.free_host_memory
    reload.free_host_memory = lambda: int(fault()) if fault().isdecimal() else free()
    try:
        more: dict[str, Any] = dict(word.split("=") for word in words)
        settings = Settings(weights=Path(weights), port=0, device="cpu", frontends=frontends, engine=engine, **more)
        serve(settings, partial(build_service, select=select))
    except MsmlpError as error:
        sys.exit(_fail(1, str(error)))
