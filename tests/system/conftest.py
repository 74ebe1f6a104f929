"""What the system tests need; what is missing fails them, never skips."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium import webdriver

from tests.processes import msmlp_serve
from tests.servers import wait_until
from tests.system.playground import seen

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long modules, which have a timeout of their own, start first: the two workers then end at about one time."""

    def limit(item: pytest.Item) -> float:
        mark = item.get_closest_marker("timeout") if item.get_closest_marker("system") else None
        return mark.args[0] if mark else 0

    items.sort(key=limit, reverse=True)


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """CIFAR-10 in its official python layout, where TEST_CIFAR10 says."""
    path = os.environ.get("TEST_CIFAR10")
    if not path or not Path(path).is_dir():
        pytest.fail("set TEST_CIFAR10 to the folder cifar-10-batches-py")
    return Path(path)


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The weights folder that `make serve` serves."""
    return ROOT / "weights" / "cifar10-s"


@pytest.fixture(scope="session")
def serve_shipped() -> Iterator[httpx.Client]:
    """A client of a real `make serve`."""
    with make_serve() as client:
        yield client


@contextlib.contextmanager
def make_serve(*variables: str) -> Iterator[httpx.Client]:
    """A client of a real `make serve`, on a free port, ended by SIGTERM; `variables` are make's, as NAME=VALUE."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Its own process group, as make does not pass signals on to what it runs; and nothing of the `make test-system`
    # that may be around it, whose ARGS would be ours.
    process = subprocess.Popen(
        ["make", "serve", f"PORT={port}", *variables],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKEOVERRIDES", "ARGS")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    drain = threading.Thread(target=process.stderr.read)
    try:
        log = []
        for line in process.stderr:
            log.append(line)
            if "msmlp.engine: ready" in line:
                break
        else:
            pytest.fail("make serve ended: " + "".join(log[-10:]))
        # The rest of the log must not fill the pipe.
        drain.start()
        # The engine may be ready a moment before the socket listens: hence the retries.
        transport = httpx.HTTPTransport(retries=5)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=60) as client:
            # The log may say "ready" a moment before the event loop knows.
            wait_until(lambda: client.get("/readyz").status_code == 200)
            yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        if drain.is_alive():
            drain.join()
        process.stderr.close()


@pytest.fixture(scope="session")
def kserve_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with KServe's client, and what describes the objects of Kubernetes and of Prometheus' operator.

    It lives in an environment of its own: among what KServe brings along are another event loop and HTTP parser, which
    uvicorn would take up by itself, so the server under test would no longer be the one that users run.
    """
    folder = tmp_path_factory.mktemp("kserve")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    packages = ["kserve>=0.15", "kubernetes-validate>=1.37", "cloudcoil-models-prometheus-operator>=0.80"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core, the script that looks for what keeps people from using a page: from a package that carries it along.

    Without the package's own dependency, Playwright, which is another driver of browsers.
    """
    folder = tmp_path_factory.mktemp("axe")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, "axe-playwright-python>=0.1.8"], check=True)
    return (folder / "axe_playwright_python" / "axe.min.js").read_text()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Headless Chromium, as Debian packages it, which logs every request that its pages make."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.fail("needs chromium and chromedriver (on Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    # Nothing of its own on the network, and no GPU, as machines that run tests have none.
    for flag in ("disable-background-networking", "disable-component-update", "disable-sync", "disable-quic"):
        options.add_argument(f"--{flag}")
    for flag in ("headless=new", "no-first-run", "disable-gpu", "window-size=1000,1000"):
        options.add_argument(f"--{flag}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which does not work for root
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def url(shipped: Path) -> Iterator[str]:
    """Where a service with the shipped weights is."""
    with msmlp_serve(shipped) as served:
        served.wait_for("engine: ready")
        yield served.url


@pytest.fixture
def page(browser: webdriver.Chrome, url: str) -> webdriver.Chrome:
    """The playground with nothing on it yet."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(url)
    seen(browser, "#policy")
    return browser
