"""The playground in a real browser, against a real `msmlp serve` with the shipped weights."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.fakes import PATIENCE_SECONDS
from tests.processes import msmlp_serve

pytestmark = pytest.mark.system

CAT = Path(__file__).resolve().parents[2] / "examples" / "cat.jpg"


@pytest.fixture(scope="module")
def url(shipped: Path) -> Iterator[str]:
    """Where the service is."""
    with msmlp_serve(shipped) as served:
        served.wait_for("engine: ready")
        yield served.url


@pytest.fixture
def page(browser: Chrome, url: str) -> Chrome:
    """The page with nothing on it yet."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(url)
    seen(browser, "#policy")
    return browser


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


def asked(url: str, **options: str) -> dict[str, Any]:
    answer = httpx.post(f"{url}/classify", params=options, files={"images": CAT.read_bytes()}, timeout=PATIENCE_SECONDS)
    result: dict[str, Any] = answer.json()["results"][0]
    return result


@pytest.mark.parametrize("policy", ["fast", "balanced", "accurate"])
def test_a_card_says_what_the_service_answers(page: Chrome, url: str, policy: str) -> None:
    choose(page, CAT)
    seen(page, ".card:not(.waiting) .stage.left")
    page.find_element(By.CSS_SELECTOR, f"#policy option[value={policy}]").click()
    seen(page, "#summary", lambda text: f"({policy} thresholds" in text)
    answer = asked(url, policy=policy)
    assert texts(page, ".card h4")[0].startswith(answer["label"])
    assert texts(page, ".stage.left .stage-title b") == [f"Stage {answer['exit']}"]
    assert len(texts(page, ".stage.on")) == answer["exit"] - 1
    assert len(texts(page, ".stage.unrun")) == answer["exits"] - answer["exit"]
    assert [said.split()[0] for said in texts(page, ".says")] == [stage["label"] for stage in answer["stages"]]
    assert f"{answer['gflops']:#.3g}" in texts(page, ".cost")[0].split()
    point = next(p for p in httpx.get(f"{url}/model").json()["operating_points"] if p["name"] == policy)
    expected = f"{100 * point['expected_accuracy']:.1f} % ± {100 * point['standard_error']:.1f} accuracy"
    assert f"Expected on average: {expected}, " in texts(page, "#summary")[0]
    assert f"{policy} · {expected} · " in texts(page, f"#policy option[value={policy}]")[0]
    assert len(texts(page, ".details dt")) == len(answer["top_k"]) + 1 + 2 * answer["exit"]


def test_points_that_coincide_say_so(page: Chrome, url: str) -> None:
    model = httpx.get(f"{url}/model").json()
    for point in model["operating_points"]:
        point["same_as"] = "accurate" if point["name"] == "fast" else None
    script = """
        const [model, done] = arguments, form = document.createElement("form");
        import("./ui/controls.js").then(({ buildControls }) => {
          buildControls(form, model, () => {});
          done(Array.from(form.querySelectorAll("option"), (option) => option.text.split(" · ")[0]));
        });
    """
    names = page.execute_async_script(script, model)
    assert [name for name in names if "same" in name] == ["fast, same as accurate"]
    assert "accurate" in names


def test_a_threshold_set_by_keyboard_decides_which_images_leave(page: Chrome) -> None:
    choose(page, CAT)
    seen(page, ".card:not(.waiting) .stage.left")
    page.find_element(By.CSS_SELECTOR, ".modes input:checked").send_keys(Keys.ARROW_RIGHT)
    assert len(texts(page, ".choice:not([hidden])")) == 1
    first, second = page.find_elements(By.CSS_SELECTOR, ".slider input[id^=threshold]")
    for keys, exit in (((Keys.HOME, Keys.HOME), 1), ((Keys.END, Keys.HOME), 2), ((Keys.END, Keys.END), 3)):
        first.send_keys(keys[0])
        second.send_keys(keys[1])
        seen(page, ".card:not(.waiting) .stage.left", lambda text, k=exit: f"Stage {k}" in text)
    assert "all 3 stages ran" in texts(page, ".why")[0]


def test_a_file_that_is_no_picture_says_so_and_stops_no_other(page: Chrome, url: str, tmp_path: Path) -> None:
    wrong = tmp_path / "notes.png"
    wrong.write_text("no picture")
    choose(page, wrong, CAT)
    refused = seen(page, ".refused")
    assert refused.startswith("notes.png: ")
    problem = httpx.post(f"{url}/classify", files={"images": b"no picture"}, timeout=PATIENCE_SECONDS).json()
    assert refused == f"notes.png: {problem['errors'][0]['detail']}"
    seen(page, ".card:not(.waiting) .stage.left")
    assert not page.find_element(By.ID, "problem").is_displayed()


def test_what_the_service_refuses_is_shown_in_its_words(page: Chrome, url: str) -> None:
    page.execute_script("document.querySelector('#policy option').value = 'nonsense'")
    page.find_element(By.CSS_SELECTOR, "#policy option").click()
    choose(page, CAT)
    detail = httpx.post(
        f"{url}/classify", params={"policy": "nonsense"}, files={"images": CAT.read_bytes()}, timeout=PATIENCE_SECONDS
    ).json()["detail"]
    assert seen(page, "#problem p") == detail


def test_the_sample_needs_no_file_and_the_strip_counts_it(page: Chrome) -> None:
    page.find_element(By.ID, "sample").click()
    seen(page, ".card:not(.waiting) .stage.left")
    assert "left" in texts(page, ".stage.left")[0]
    (spoken,) = texts(page, "#spoken")
    assert spoken.endswith(texts(page, ".why")[0])
    assert int(seen(page, ".fact b", lambda text: text != "0").replace(",", "")) >= 1
    assert "%" in seen(page, ".shares")


def test_nothing_is_asked_of_others_and_the_console_stays_silent(page: Chrome, url: str) -> None:
    choose(page, CAT)
    seen(page, ".card:not(.waiting) .stage.left")
    seen(page, ".shares")
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {f"{url}/classify", f"{url}/ui/app.js"} <= set(urls)
    assert [asked for asked in urls if not asked.removeprefix("blob:").startswith(f"{url}/")] == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(page: Chrome, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        choose(page, CAT)
        seen(page, ".card:not(.waiting) .stage.left")
        assert page.execute_script("return document.documentElement.scrollWidth") == width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_service_that_went_away_is_reported_and_can_be_asked_again(page: Chrome, url: str) -> None:
    choose(page, CAT)
    seen(page, "#summary", lambda text: text != "")
    cut = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.execute_cdp_cmd("Network.emulateNetworkConditions", cut)
    try:
        page.find_element(By.CSS_SELECTOR, "#policy option[value=accurate]").click()
        assert seen(page, "#problem p") == "The service does not answer."
        assert texts(page, "#summary, .refused") == ["", "cat.jpg: not classified"]
    finally:
        page.execute_cdp_cmd("Network.emulateNetworkConditions", {**cut, "offline": False})
    page.find_element(By.ID, "retry").click()
    seen(page, ".card:not(.waiting) .stage.left")
    assert not page.find_element(By.ID, "problem").is_displayed()


def test_a_service_that_asks_for_a_key_gets_it_from_the_page(browser: Chrome, shipped: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key-of-20-letters-")
    with msmlp_serve(shipped, "--api-keys-file", str(file)) as served:
        served.wait_for("engine: ready")
        browser.get(served.url)
        assert "no valid key" in seen(browser, "#problem p")
        field = browser.find_element(By.ID, "key")
        field.send_keys("a-key-of-another-one", Keys.ENTER)
        seen(browser, "#door")
        field.clear()
        field.send_keys("a-key-of-20-letters-", Keys.ENTER)
        seen(browser, "#policy")
        assert texts(browser, "#problem:not([hidden]), #door:not([hidden])") == []
        choose(browser, CAT)
        seen(browser, ".card:not(.waiting) .stage.left")
        seen(browser, ".shares")
        browser.get(served.url)
        assert "no valid key" in seen(browser, "#problem p"), "the page has forgotten it"
    for log in ("browser", "performance"):
        browser.get_log(log)
