"""`serve` with services that cannot be: python programs.py WEIGHTS WHAT ENGINE."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from msmlp.model.backends.protocol import StageBackend
from msmlp.model.backends.select import Selection
from msmlp.model.errors import DeviceError, OptionError
from msmlp.service.http.server import serve
from msmlp.service.service import Service, build_service
from msmlp.service.settings import Settings


def no_device() -> StageBackend:
    raise DeviceError("the device is broken")


def select_broken(*_: Any) -> Selection:
    return Selection("broken", "cpu", "", no_device)


def refuse(settings: Settings, *, share: int = 1) -> Service:
    """What the supervisor has found in order is not any more when a front end comes to it."""
    if share > 1:
        raise OptionError("--weights", "they have gone")
    return build_service(settings)


BUILDS = {"broken": partial(build_service, select=select_broken), "refused": refuse}

if __name__ == "__main__":
    from msmlp.main import _fail
    from msmlp.model.errors import CallerError, MsmlpError

    try:
        settings = Settings(weights=Path(sys.argv[1]), port=0, device="cpu", frontends=2, engine=sys.argv[3])
        serve(settings, BUILDS[sys.argv[2]])
    except MsmlpError as error:
        sys.exit(_fail(2 if isinstance(error, CallerError) else 1, str(error)))
