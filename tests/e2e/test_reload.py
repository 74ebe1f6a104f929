"""New weights in a running service: by SIGHUP, and by `POST /admin/reload`."""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.conftest import Digits
from tests.e2e.test_frontends import front_ends
from tests.fakes import PATIENCE_SECONDS
from tests.processes import Served
from tests.reloads import Load, Version, as_files, hang_up, put, reload, reloadable, train_two_stages
from tests.servers import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

PICTURES = 12
CLASSIFIED = 'msmlp_requests_total{route="/classify",status="200"}'


@pytest.fixture(scope="module")
def pictures(digits: Digits) -> list[bytes]:
    return as_files(digits.test[:PICTURES])


@pytest.fixture(scope="module")
def old(tiny_weights: Path, digits: Digits) -> Version:
    return Version.of(tiny_weights, digits.test[:PICTURES])


@pytest.fixture(scope="module")
def new(digits_folder: Path, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Version:
    folder = train_two_stages(digits_folder, tmp_path_factory.mktemp("weights") / "two-stages")
    return Version.of(folder, digits.test[:PICTURES])


@pytest.fixture(scope="module", params=["inline", "process"])
def served(request: pytest.FixtureRequest, old: Version, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With engines inside the front ends, and with one that they share."""
    where = tmp_path_factory.mktemp("served")
    with reloadable(old, where, "--engine", request.param) as served:
        served.folder = where / "weights"  # type: ignore[attr-defined]
        yield served


def folder_of(served: Served) -> Path:
    folder: Path = served.folder  # type: ignore[attr-defined]
    return folder


def version(served: Served) -> str:
    return str(httpx.get(f"{served.url}/model", timeout=PATIENCE_SECONDS).json()["version"])


def test_the_two_versions_differ(old: Version, new: Version) -> None:
    assert (old.exits, new.exits) == (3, 2)
    assert not any(new.answers[i] == old.answers[i] for i in range(PICTURES))


@pytest.mark.parametrize("by", ["post", "signal"])
def test_every_answer_is_from_one_version_and_no_connection_closes(
    served: Served, old: Version, new: Version, pictures: list[bytes], by: str
) -> None:
    before, after = (old, new) if version(served) == old.name else (new, old)
    load = Load(served.url, pictures, [old, new])
    counted = served.metric(CLASSIFIED)
    put(folder_of(served), after.folder)
    with load.from_clients(6):
        if by == "signal":
            hang_up(served)
        else:
            answer = reload(served)
            assert answer.status_code == 200, answer.text
            done = answer.json()
            assert (done["version"], done["previous_version"]) == (after.name, before.name)
            assert done["seconds"] > 0
        switched = time.monotonic()
    assert load.versions_since(0) == {before.name, after.name}
    assert load.versions_since(switched) == {after.name}
    assert version(served) == after.name
    info = httpx.get(f"{served.url}/metrics", timeout=PATIENCE_SECONDS).text
    assert f'version="{after.name}"' in info
    assert f'version="{before.name}"' not in info
    assert served.metric("msmlp_frontends_ready") == 2
    wait_until(lambda: served.metric(CLASSIFIED) == counted + len(load.answered))
    assert "Traceback" not in served.log


def damaged(folder: Path) -> None:
    blob = bytearray((folder / "model.safetensors").read_bytes())
    blob[-1] ^= 1
    (folder / "model.safetensors").write_bytes(blob)


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def not_numbers(folder: Path) -> None:
    """Its hashes fit."""
    from safetensors.numpy import load_file, save

    state = load_file(folder / "model.safetensors")
    name = next(iter(state))
    state[name] = np.full_like(state[name], np.nan)
    blob, manifest = save(state), json.loads((folder / "manifest.json").read_text())
    (folder / "model.safetensors").write_bytes(blob)
    manifest["files"]["model.safetensors"] = hashlib.sha256(blob).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [(damaged, "is damaged"), (without_weights, "missing"), (not_numbers, "NaN"), (gone, "no weights")],
)
def test_a_bad_folder_leaves_what_is_served_and_says_why(
    served: Served, old: Version, pictures: list[bytes], spoil: Callable[[Path], None], why: str
) -> None:
    folder, serving, processes = folder_of(served), version(served), front_ends(served)
    put(folder, old.folder)
    spoil(folder)
    refused = served.metric('msmlp_reloads_total{outcome="bad_weights"}')
    answer = reload(served)
    assert answer.status_code == 422
    assert answer.json()["code"] == "bad_weights"
    assert why in answer.json()["detail"]
    assert str(folder) not in answer.text
    hang_up(served, "bad_weights")
    assert served.metric('msmlp_reloads_total{outcome="bad_weights"}') == refused + 2
    assert str(folder) in served.log
    assert (version(served), front_ends(served)) == (serving, processes)
    put(folder, old.folder)


def test_only_an_admin_key_reloads(served: Served) -> None:
    assert reload(served, "not-the-operators-key").status_code == 401
    assert httpx.get(f"{served.url}/admin/reload", timeout=PATIENCE_SECONDS).status_code in (401, 405)
