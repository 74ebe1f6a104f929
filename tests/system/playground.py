"""What the tests of the playground do with it, in a real Chromium."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.fakes import PATIENCE_SECONDS

CAT = Path(__file__).resolve().parents[2] / "examples" / "cat.jpg"
ANSWERED = ".card:not(.waiting) .stage.left"


def until(browser: Chrome, script: str, *arguments: Any) -> Any:
    """What a script gives, once that is true."""
    wait = WebDriverWait(browser, PATIENCE_SECONDS, poll_frequency=0.1)
    return wait.until(lambda _: browser.execute_script(script, *arguments), f"{script} {arguments}")


def seen(browser: Chrome, selector: str, holds: Callable[[str], bool] = lambda text: True) -> str:
    """The text of the first element that `selector` names, once that is visible and `holds` is true of its text.

    Read in one step, as the page may replace an element at any time.
    """
    script = "const it = document.querySelector(arguments[0]); return it?.checkVisibility() ? it.innerText : null"

    def found(_: Chrome) -> tuple[str] | None:
        text = browser.execute_script(script, selector)
        return (text,) if text is not None and holds(text) else None

    return WebDriverWait(browser, PATIENCE_SECONDS, poll_frequency=0.1).until(found, f"no {selector}")[0]


def texts(browser: Chrome, selector: str) -> list[str]:
    script = "return Array.from(document.querySelectorAll(arguments[0]), (each) => each.innerText)"
    return browser.execute_script(script, selector)


def choose(browser: Chrome, *files: Path) -> None:
    browser.find_element(By.ID, "files").send_keys("\n".join(map(str, files)))


def answered(browser: Chrome, images: int) -> None:
    """Until so many images have their answer."""
    until(browser, f"return document.querySelectorAll('.card:not(.waiting) .time:not(:empty)').length === {images}")


def click(browser: Chrome, selector: str) -> None:
    """Wherever it is on the page: the strip at the bottom may cover it."""
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def pick(browser: Chrome, policy: str) -> None:
    """Choose a policy, and wait until the page asks with it: it waits for a moment, in case another is chosen."""
    browser.find_element(By.CSS_SELECTOR, f"#policy option[value={policy}]").click()
    until(browser, "return new URLSearchParams(location.search).get('policy') === arguments[0]", policy)


def asked(url: str, image: Path = CAT, **options: str) -> dict[str, Any]:
    """The service's answer without the page."""
    files = {"images": image.read_bytes()}
    answer = httpx.post(f"{url}/classify", params=options, files=files, timeout=PATIENCE_SECONDS)
    document: dict[str, Any] = answer.raise_for_status().json()
    return document


def model_of(url: str) -> dict[str, Any]:
    document: dict[str, Any] = httpx.get(f"{url}/model", timeout=PATIENCE_SECONDS).json()
    return document


def requests(browser: Chrome) -> list[str]:
    """Method and address of what the pages have asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [f"{each['method']} {each['url']}" for each in sent]


def pictures(folder: Path, number: int) -> list[Path]:
    """So many small images, no two alike, from pieces of a photograph."""
    photo = Image.open(CAT)
    paths = [folder / f"piece-{place:02d}.png" for place in range(number)]
    for place, path in enumerate(paths):
        left, top = 5 * place % 150, 3 * place % 150
        photo.crop((left, top, left + 64, top + 64)).save(path)
    return paths


def corner(folder: Path) -> Path:
    """An ear and an eye of the cat, of which the first exit of the shipped weights makes something else."""
    path = folder / "corner.png"
    Image.open(CAT).crop((110, 0, 220, 110)).save(path)
    return path


def crop_of(browser: Chrome) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What the only open card shows of the model's input: uint8 [size, size, 3]."""
    encoded = until(browser, "return document.querySelector('canvas.seen')?.toDataURL('image/png')")
    data = base64.b64decode(encoded.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@contextmanager
def screen(browser: Chrome, width: int, scheme: str = "light", motion: str = "no-preference") -> Iterator[None]:
    """A screen of that width, and what its owner prefers."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    media = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": False})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@contextmanager
def slow_network(browser: Chrome, latency_ms: int) -> Iterator[None]:
    def delay(milliseconds: int) -> None:
        conditions = {"offline": False, "latency": milliseconds, "downloadThroughput": -1, "uploadThroughput": -1}
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)

    browser.execute_cdp_cmd("Network.enable", {})
    delay(latency_ms)
    try:
        yield
    finally:
        delay(0)
