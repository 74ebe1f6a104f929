"""/docs in a real browser, against a real `msmlp serve`: Swagger UI without any other host, under our policy."""

import json
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.fakes import PATIENCE_SECONDS
from tests.processes import msmlp_serve

pytestmark = pytest.mark.system

OPERATIONS = {
    "GET /docs",
    "GET /livez",
    "GET /metrics",
    "GET /model",
    "GET /readyz",
    "POST /classify",
    "PUT /classify",
}


def waiting(browser: Chrome, script: str) -> None:
    """Until `script` gives something true."""
    WebDriverWait(browser, PATIENCE_SECONDS, poll_frequency=0.1).until(lambda _: browser.execute_script(script), script)


def test_every_operation_is_shown_and_can_be_tried_without_any_other_host(browser: Chrome, shipped: Path) -> None:
    browser.get("about:blank")  # the page of another test may still ask its server
    for log in ("browser", "performance"):
        browser.get_log(log)
    with msmlp_serve(shipped) as served:
        served.wait_for("engine: ready")
        browser.get(f"{served.url}/docs")
        waiting(browser, f"return document.querySelectorAll('.opblock').length >= {len(OPERATIONS)}")
        shown = [each.text.split() for each in browser.find_elements(By.CSS_SELECTOR, ".opblock-summary")]
        assert {f"{method} {path}".replace("\u200b", "") for method, path, *_ in shown} == OPERATIONS

        browser.find_element(By.CSS_SELECTOR, "#operations-default-readyz .opblock-summary-control").click()
        for button in (".try-out__btn", ".execute"):
            waiting(browser, f"return document.querySelector('{button}')")
            browser.execute_script(f"document.querySelector('{button}').click()")
        waiting(browser, "return document.querySelector('.live-responses-table .response-col_status')")
        status = browser.find_element(By.CSS_SELECTOR, ".live-responses-table .response .response-col_status").text
        assert status.split()[0] == "200"

        browser.execute_script("document.querySelectorAll('.opblock-summary-control').forEach((each) => each.click())")
        waiting(browser, "return document.querySelectorAll('.opblock.is-open').length >= 6")
        assert browser.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # Chromium's own pages, at its start, log theirs too.
    urls = [each["request"]["url"] for each in requests if not each["documentURL"].startswith("chrome:")]
    assert {f"{served.url}/openapi.json", f"{served.url}/readyz"} <= set(urls)
    assert [asked for asked in urls if not asked.startswith((f"{served.url}/", "data:", "blob:"))] == []
