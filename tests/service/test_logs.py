"""What a process writes to stderr, as text and as JSON."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


BLOCKED = """
import logging, os, sys
from msmlp.service.logs import Logging, dropped_lines

Logging("info", "text").begin()
for number in range(3000):
    logging.getLogger("msmlp.test").info("line %d %s", number, "x" * 100)
sys.stdout.write(str(dropped_lines()))
"""


def run_blocked(stderr: int) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, stderr=stderr, timeout=150)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    "make", [os.pipe, lambda: [end.detach() for end in socket.socketpair()]], ids=["pipe", "socket"]
)
def test_a_reader_that_does_not_read_holds_up_nobody(make: Callable[[], Any]) -> None:
    reads, writes = make()
    done = run_blocked(writes)
    assert done.returncode == 0
    dropped = int(done.stdout)
    assert 0 < dropped < 3000
    assert os.get_blocking(writes), "whoever shares it"
    os.close(writes)
    with os.fdopen(reads, "rb") as log:
        numbers = [int(line.split()[5]) for line in log.read().splitlines() if line.endswith(b"x" * 100)]
    assert numbers == sorted(numbers)
    assert abs(len(numbers) + dropped - 3000) <= 2, "all but a line cut short are whole"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_full_disk_and_a_reader_that_has_gone_are_no_fault_of_a_process() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_blocked(full.fileno())
        assert (done.returncode, int(done.stdout)) == (0, 3000)
    reads, writes = os.pipe()
    os.close(reads)
    done = run_blocked(writes)
    assert (done.returncode, int(done.stdout)) == (0, 3000)
    os.close(writes)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_file_is_written_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    with path.open("ab") as log:
        done = run_blocked(log.fileno())
    assert (done.returncode, done.stdout) == (0, b"0")
    assert len(path.read_text().splitlines()) == 3001
