"""The playground for everyone: dropped and pasted files, the keyboard, narrow and dark screens, and what axe finds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.fakes import PATIENCE_SECONDS
from tests.system.playground import (
    ANSWERED,
    CAT,
    answered,
    asked,
    choose,
    click,
    pick,
    pictures,
    screen,
    seen,
    texts,
    until,
)

pytestmark = pytest.mark.system


@pytest.fixture
def clipboard(page: Chrome, url: str) -> Chrome:
    """The page, which may read and write the clipboard without asking."""
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.execute_cdp_cmd("Browser.grantPermissions", {"origin": url, "permissions": permissions})
    return page


def test_files_dropped_anywhere_are_classified(page: Chrome, tmp_path: Path) -> None:
    data = {"items": [], "files": [str(CAT), str(pictures(tmp_path, 1)[0])], "dragOperationsMask": 1}
    for kind, over in (("dragEnter", False), ("dragOver", True), ("drop", False)):
        page.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 20, "y": 500, "data": data})
        assert page.execute_script("return document.getElementById('drop').classList.contains('over')") == over
    answered(page, 2)
    assert texts(page, ".name") == ["cat.jpg", "piece-00.png"]


def test_a_pasted_image_is_classified(clipboard: Chrome) -> None:
    copy = """
    const done = arguments[0];
    (async () => {
      const picture = await createImageBitmap(await (await fetch("ui/cat.jpg")).blob());
      const canvas = new OffscreenCanvas(picture.width, picture.height);
      canvas.getContext("2d").drawImage(picture, 0, 0);
      await navigator.clipboard.write([new ClipboardItem({ "image/png": await canvas.convertToBlob() })]);
    })().then(() => done("copied"), (error) => done(String(error)));
    """
    assert clipboard.execute_async_script(copy) == "copied"
    ActionChains(clipboard).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    answered(clipboard, 1)
    assert texts(clipboard, ".name") == ["image.png"]
    assert texts(clipboard, ".label")[0].startswith("cat")


def copied(page: Chrome, button: str) -> str:
    """What a button of the commands puts into the clipboard."""
    before = texts(page, "#spoken")
    [found] = [each for each in page.find_elements(By.CSS_SELECTOR, "#commands button") if each.text == button]
    found.send_keys(Keys.ENTER)
    assert seen(page, "#spoken", lambda text: [text] != before) == button.replace("Copy", "Copied") + "."
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, (error) => done(String(error)))"
    text: str = page.execute_async_script(read)
    return text


NAMES = ["cat.jpg", 'a cat\'s "best" $HOME.jpg', "Katze ü; type=text,1 \\ 2.jpg", "-F.jpg"]
CHOICES = {"policy": "fast", "thresholds": "0.91234,0.61234", "budget_gflops": "0.006", "min_accuracy": "0.85"}


@pytest.mark.parametrize("option", CHOICES)
def test_what_is_copied_runs_and_gets_the_same_answers(
    clipboard: Chrome, url: str, tmp_path: Path, option: str
) -> None:
    page = clipboard
    page.get(f"{url}/?{option}={CHOICES[option]}")
    seen(page, ".choice:not([hidden])")
    files = [tmp_path / name for name in (NAMES if option == "policy" else NAMES[:1])]
    for file in files:
        file.write_bytes(CAT.read_bytes())
    choose(page, *files)
    answered(page, len(files))
    click(page, ".commands summary")
    here: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": PATIENCE_SECONDS}
    expected = asked(url, **{option: CHOICES[option]})

    curl = subprocess.run(["sh", "-c", copied(page, "Copy as curl")], check=True, **here)
    answer = json.loads(curl.stdout)
    assert len(answer["results"]) == len(files)
    assert answer["operating_point"] == expected["operating_point"]

    python = subprocess.run([sys.executable, "-c", copied(page, "Copy as Python")], check=True, **here)
    lines = python.stdout.splitlines()
    [result] = expected["results"]
    said = f"{result['label']} {result['confidence']:.0%} at exit {result['exit']} for {result['gflops']} GFLOPs"
    assert lines == [said] * len(files)


def test_without_a_mouse_everything_can_be_reached_in_order(page: Chrome) -> None:
    def press(key: str) -> None:
        ActionChains(page).send_keys(key).perform()

    def focused() -> str:
        return page.execute_script("const it = document.activeElement; return it.id || it.className || it.innerText")

    page.execute_script("document.querySelector('nav').focus()")
    order = []
    while not order or order[-1] != "policy":
        press(Keys.TAB)
        order.append(focused())
        outline = page.execute_script(
            "return getComputedStyle(document.activeElement.closest('.drop, .modes label') ?? document.activeElement)"
            ".outlineStyle"
        )
        assert outline == "solid", f"no mark of the focus at {order[-1]}"
    assert order[:5] == ["API", "Model", "Metrics", "files", "sample"]
    page.find_element(By.ID, "sample").send_keys(Keys.ENTER)
    seen(page, ANSWERED)
    page.find_element(By.ID, "policy").send_keys("")
    order = []
    while not order or "other exits" not in order[-1]:
        press(Keys.TAB)
        order.append(focused())
    assert order[0] == "clear"
    assert "row" in order
    press(Keys.ENTER)
    seen(page, ".others:not(:has(button))")


@pytest.mark.parametrize("width", [320, 390, 768, 1400])
def test_no_screen_needs_sideways_scrolling(page: Chrome, tmp_path: Path, width: int) -> None:
    wrong = tmp_path / f"{'a long name ' * 9}.png"
    wrong.write_text("no picture")
    with screen(page, width):
        choose(page, CAT, wrong)
        seen(page, ANSWERED)
        click(page, ".commands summary")
        click(page, ".others button")
        seen(page, ".others:not(:has(button))")
        assert page.execute_script("return document.documentElement.scrollWidth") == width
        choose(page, *pictures(tmp_path, 4))
        answered(page, 5)
        assert page.execute_script("return document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 820, 1400])
def test_axe_finds_nothing_serious(page: Chrome, axe: str, tmp_path: Path, width: int, scheme: str) -> None:
    wrong = tmp_path / "notes.png"
    wrong.write_text("no picture")
    with screen(page, width, scheme):
        page.execute_script(axe)
        seen(page, "#live .fact")
        assert serious(page) == []
        pick(page, "p01")
        choose(page, CAT, wrong)
        seen(page, ANSWERED)
        click(page, ".commands summary")
        click(page, ".others button")
        seen(page, ".others:not(:has(button))")
        assert serious(page) == []
        choose(page, *pictures(tmp_path, 5))
        answered(page, 6)
        click(page, "#compare")
        until(page, "return document.getElementById('compare').hidden")
        click(page, ".modes input[value=thresholds]")
        until(page, "return location.search.startsWith('?thresholds=')")
        answered(page, 6)
        assert serious(page) == []


def serious(page: Chrome) -> list[str]:
    """What axe finds to be serious or critical: the rule and where."""
    script = (
        "const done = arguments[0]; axe.run().then(done, (error) => done({ violations: [], error: String(error) }))"
    )
    found = page.execute_async_script(script)
    assert "error" not in found, found["error"]
    assert len(found["passes"]) > 10, "it looked"
    return [
        f"{each['id']}: {node['html']} {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def test_who_wants_no_motion_gets_none(page: Chrome) -> None:
    behaviour = "return getComputedStyle(document.documentElement).scrollBehavior"
    for motion, expected in (("no-preference", "smooth"), ("reduce", "auto")):
        with screen(page, 390, motion=motion):
            assert page.execute_script(behaviour) == expected
            assert page.execute_script("return document.getAnimations().length") == 0


def test_on_a_narrow_screen_the_answers_come_into_view(page: Chrome) -> None:
    with screen(page, 390, motion="reduce"):
        choose(page, CAT)
        seen(page, ANSWERED)
        assert until(page, "return document.getElementById('results').getBoundingClientRect().top < innerHeight / 2")
