"""`make image-test`: builds the container, starts it with a read-only root file system, and calls it."""

import signal
import subprocess
import sys

from scripts import image_checks as checks
from scripts.commands import output
from scripts.image_buildah import Buildah
from scripts.image_docker import Docker
from scripts.image_run import ImageTestError, expect, running

NO_TOOL = "needs Docker with a running engine; or, as root on Debian: apt-get install buildah debootstrap"
MOST_BYTES, MOST_SECONDS = 500_000_000, 5
"""Of the CPU image: its size, and the time until it is ready."""


def main(extra: str) -> int:
    """Test the image of `extra`, cpu or gpu → the exit status."""
    if extra not in checks.BACKENDS:
        _say(f"EXTRA is cpu or gpu, not {extra}")
        return 2
    engine = Docker() if Docker.usable() else Buildah() if Buildah.usable() else None
    if not engine:
        _say(NO_TOOL)
        return 2
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, lambda *_: sys.exit(1))  # on its way out the container is removed
    try:
        _test(engine, f"localhost/msmlp:{extra}", extra)
    except (ImageTestError, subprocess.CalledProcessError) as error:
        _say(str(error))
        return 1
    return 0


def _test(engine: Docker | Buildah, image: str, extra: str) -> None:
    engine.build(image, [f"EXTRA={extra}", f"REVISION={output('git', 'rev-parse', 'HEAD')}"])
    layers, config = engine.inspect(image)
    _say(f"{image} with {engine.name}: {layers / 1e6:.0f} MB")
    checks.check_configuration(config)
    with running(engine, image) as first:
        _say(f"ready {first.ready_seconds:.1f} s after the start")
        checks.check_answers(first, extra)
        checks.check_isolation(first)
        checks.check_contents(first, extra, layers)
        engine.inside(config["Healthcheck"]["Test"][1:])
        checks.check_end(first)
    with running(engine, image, checks.MOUNTED) as second:
        _say(f"with mounted weights: {second.ready_seconds:.1f} s")
        checks.check_mounted_weights(second)
    if extra == "cpu":
        # Of two starts the faster: what else the machine does is not the image's.
        seconds = min(first.ready_seconds, second.ready_seconds)
        expect(layers < MOST_BYTES, f"the image has {layers} bytes, at most {MOST_BYTES} are allowed")
        expect(seconds < MOST_SECONDS, f"ready after {seconds:.1f} s, at most {MOST_SECONDS} are allowed")


def _say(text: str) -> None:
    sys.stderr.write(f"image-test: {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
