"""What a process writes to stderr, as text and as JSON."""

import json
import logging
import subprocess
import sys

import pytest

from msmlp.service.logs import Seldom
from tests.fakes import Clock

PROGRAM = """
import io
import logging
from PIL import Image
from msmlp.service.logs import Logging, in_force
from msmlp.service.logs import request_id_of_this_task

assert in_force() is None
Logging("info", "{format}").begin()
assert in_force() == Logging("info", "{format}")
log = logging.getLogger("msmlp.test")
log.debug("not this")
logging.getLogger("a.library").info("nor this")
log.info("%d images", 3, extra={{"exits": {{"1": 2, "3": 1}}}})
request_id_of_this_task.set("mine")
log.warning("inside\\na request")
try:
    raise ValueError("broken")
except ValueError:
    log.exception("failed")
log.info("%s", "\\udcff \u00e9")
log.info("another's", extra={{"request_id": "theirs"}})
logging.getLogger("a.library").warning("in trouble")
Image.MAX_IMAGE_PIXELS = 99
for kind, size in (("PNG", 10), ("GIF", 11)):
    stream = io.BytesIO()
    Image.new("L", (size, size)).save(stream, kind)
    Image.open(stream)
assert not vars(Image).get("__warningregistry__", {{}}).keys() - {{"version"}}
"""


def written(form: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(format=form)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    return done.stderr.splitlines()


def test_pictures_do_not_warn() -> None:
    assert not [line for line in written("text") if "DecompressionBomb" in line]


def test_json_is_one_object_a_line() -> None:
    documents = [json.loads(line) for line in written("json")]
    for document in documents:
        assert document.pop("timestamp").endswith("+00:00")
    trace = documents[2].pop("exception")
    assert trace.startswith("Traceback")
    assert trace.endswith("ValueError: broken")
    assert documents == [
        {"level": "INFO", "logger": "msmlp.test", "message": "3 images", "exits": {"1": 2, "3": 1}},
        {"level": "WARNING", "logger": "msmlp.test", "message": "inside\na request", "request_id": "mine"},
        {"level": "ERROR", "logger": "msmlp.test", "message": "failed", "request_id": "mine"},
        {"level": "INFO", "logger": "msmlp.test", "message": "\udcff \u00e9", "request_id": "mine"},
        {"level": "INFO", "logger": "msmlp.test", "message": "another's", "request_id": "theirs"},
        {"level": "WARNING", "logger": "a.library", "message": "in trouble", "request_id": "mine"},
    ]


def test_text_has_the_requests_id_in_brackets() -> None:
    lines = written("text")
    assert lines[0].endswith(" INFO msmlp.test: 3 images")
    assert lines[2] == "a request [mine]"
    assert lines[3].endswith(" ERROR msmlp.test: failed [mine]")
    assert lines[4].startswith("Traceback")
    assert lines[-4] == "ValueError: broken"
    assert lines[-3].endswith(" INFO msmlp.test: \\udcff \u00e9 [mine]")
    assert lines[-2].endswith(" INFO msmlp.test: another's [theirs]")
    assert lines[-1].endswith(" WARNING a.library: in trouble [mine]")


def test_a_line_that_clients_provoke_is_written_seldom_with_how_many_there_were(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("msmlp.service.logs.time", clock)
    seldom = Seldom(logging.getLogger("msmlp.test"), logging.WARNING)
    for number in range(5):
        seldom("refused: %s", f"no {number}", request_id=f"id-{number}")
    clock.ahead += Seldom.SECONDS
    seldom("refused: %s", "no 5", request_id="id-5")
    assert caplog.messages == ["refused: no 0", "refused: no 5 (and 4 more like it since the last line)"]
    assert [record.request_id for record in caplog.records] == ["id-0", "id-5"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_below_the_level_is_written(form: str) -> None:
    assert not [line for line in written(form) if "this" in line]
