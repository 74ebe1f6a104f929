"""The wheel as its users get it: built from the source distribution, installed without a checkout, then used."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.processes import Served

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PHOTO = ROOT / "examples" / "cat.jpg"
MOST_BYTES = 10_000_000

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "VIRTUAL_ENV") and not name.startswith("MSMLP_")
}
"""Ours, without what would decide which package is imported, or what it does."""

IN_PROCESS = """
import sys
import msmlp
with msmlp.load() as model:
    print(model(sys.argv[1]).results[0].label)
print(msmlp.__version__)
"""

CALLING = """
import sys
import msmlp
print(msmlp.Client(sys.argv[1]).classify(sys.argv[2]).results[0].label)
"""

TYPED = """
import msmlp

answer = msmlp.Client("http://127.0.0.1:8000").classify("cat.jpg", top_k="three")
label: int = answer.results[0].label
"""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints on stdout; its stderr is shown when it fails."""
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_environment(folder: Path) -> Path:
    """A new virtual environment → its folder of programs."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin"


def copy_sources(folder: Path) -> Path:
    """The tracked files: a build in the checkout would leave files there, and use what earlier builds left."""
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as `python -m build` does."""
    folder = tmp_path_factory.mktemp("build")
    programs = make_environment(folder / "venv")
    run(programs / "pip", "install", "--quiet", "build", cwd=folder)
    run(programs / "python", "-m", "build", copy_sources(folder / "source"), "--outdir", folder / "dist", cwd=folder)
    assert (folder / "dist" / f"msmlp-{PROJECT['version']}.tar.gz").exists()
    [wheel] = (folder / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and what serving on a CPU needs."""
    programs = make_environment(tmp_path_factory.mktemp("installed") / "venv")
    run(programs / "pip", "install", "--quiet", f"{wheel}[cpu,serve]", cwd=programs)
    return programs


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and what a client needs."""
    programs = make_environment(tmp_path_factory.mktemp("client") / "venv")
    run(programs / "pip", "install", "--quiet", f"{wheel}[client]", cwd=programs)
    return programs


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with an editable install."""
    folder = tmp_path_factory.mktemp("editable")
    programs = make_environment(folder / "venv")
    run(programs / "pip", "install", "--quiet", "--no-deps", "--editable", copy_sources(folder / "source"), cwd=folder)
    return programs


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A user's folder, whose files have the names of our folders."""
    for name in ("model.py", "service.py"):
        (tmp_path / name).write_text("raise SystemExit('the file of the user was imported')\n")
    return tmp_path


def test_the_wheel_claims_one_name_and_carries_the_default_weights_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"msmlp", f"msmlp-{PROJECT['version']}.dist-info"}
    assert {name.removeprefix("msmlp/weights/") for name in names if name.startswith("msmlp/weights/")} == {
        f"cifar10-s/{name}"
        for name in (
            "calibration.json",
            "calibration.safetensors",
            "export.json",
            "manifest.json",
            "model.safetensors",
            "stage-1.onnx",
            "stage-2.onnx",
            "stage-3.onnx",
        )
    }
    assert {
        "msmlp/py.typed",
        "msmlp/service/grpc/inference.binpb",
        "msmlp/service/ui/cat.jpg",
        "msmlp/service/ui/docs.html",
        "msmlp/service/ui/docs.js",
        "msmlp/service/ui/index.html",
    } <= set(names)
    assert wheel.stat().st_size < MOST_BYTES


def test_a_model_in_process_answers_in_a_folder_with_a_model_py(installed: Path, desk: Path) -> None:
    label, version = run(installed / "python", "-c", IN_PROCESS, PHOTO, cwd=desk).splitlines()
    assert label == "cat"
    assert version == PROJECT["version"]
    assert run(installed / "msmlp", "--version", cwd=desk) == f"msmlp {version}\n"


def test_the_service_answers_in_a_folder_with_a_service_py(installed: Path, client: Path, desk: Path) -> None:
    command = [installed / "msmlp", "serve", "--port", "0"]
    served = Served(subprocess.Popen(command, cwd=desk, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True))
    try:
        served.wait_for("engine: ready")
        kind = {"Content-Type": "image/jpeg"}
        answer = httpx.post(f"{served.url}/classify", content=PHOTO.read_bytes(), headers=kind, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"]["name"] == "cifar10-s"
        assert answer.json()["results"][0]["label"] == "cat"
        assert run(client / "python", "-c", CALLING, served.url, PHOTO, cwd=desk) == "cat\n"
        assert httpx.get(f"{served.url}/ui/cat.jpg", timeout=60).content == PHOTO.read_bytes()
        for name in ("docs", "ui/docs.js", "ui/swagger-ui-bundle.js", "ui/swagger-ui.css"):
            assert httpx.get(f"{served.url}/{name}", timeout=60).status_code == 200, name
    finally:
        served.kill()


@pytest.mark.parametrize("install", ["installed", "editable"])
def test_a_type_checker_sees_the_types(install: str, desk: Path, request: pytest.FixtureRequest) -> None:
    programs: Path = request.getfixturevalue(install)
    (desk / "program.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", programs / "python", "program.py"]
    done = subprocess.run(command, cwd=desk, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 2, done.stdout + done.stderr
    assert 'Argument "top_k"' in errors[0]
    assert "Incompatible types in assignment" in errors[1]


def test_a_checkout_without_links_is_refused_with_one_line(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source")
    link = source / "msmlp" / "model"
    target = str(link.readlink())
    link.unlink()
    link.write_text(target)  # what git writes where it cannot make links
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, source]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "msmlp/model is not a link" in line]
    assert said == ["msmlp/model is not a link to model/: git clone -c core.symlinks=true makes it one"]
    assert "Traceback" not in done.stdout + done.stderr
