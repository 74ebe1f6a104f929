"""The playground in a real browser, against a real `msmlp serve` with the shipped weights: what it says."""

import io
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from skimage import data

from msmlp.model.importing.stages import Preprocessing
from msmlp.model.preprocess import load_image
from msmlp.model.weights import load_weights
from tests.fakes import PATIENCE_SECONDS
from tests.imported import MEAN, STD, imported, network
from tests.processes import msmlp_serve
from tests.system.playground import (
    ANSWERED,
    CAT,
    answered,
    asked,
    choose,
    click,
    corner,
    crop_of,
    model_of,
    pick,
    pictures,
    requests,
    seen,
    slow_network,
    texts,
    until,
)

pytestmark = pytest.mark.system


@pytest.mark.parametrize("policy", ["fast", "balanced", "accurate"])
def test_a_card_says_what_the_service_answers(page: Chrome, url: str, policy: str) -> None:
    choose(page, CAT)
    seen(page, ANSWERED)
    page.find_element(By.CSS_SELECTOR, f"#policy option[value={policy}]").click()
    seen(page, "#summary", lambda text: f"({policy} thresholds" in text)
    [answer] = asked(url, policy=policy)["results"]
    assert texts(page, ".card .label")[0].startswith(answer["label"])
    assert texts(page, ".stage.left .stage-title b") == [f"Stage {answer['exit']}"]
    assert len(texts(page, ".stage.on")) == answer["exit"] - 1
    assert len(texts(page, ".stage.unrun")) == answer["exits"] - answer["exit"]
    assert [said.split()[0] for said in texts(page, ".says")] == [stage["label"] for stage in answer["stages"]]
    assert f"{answer['gflops']:#.3g}" in texts(page, ".verdict .muted")[0].split()
    assert texts(page, ".exit") == [f"exit {answer['exit']} of {answer['exits']}"]
    assert len(texts(page, ".details dt")) == len(answer["top_k"]) + 1 + 2 * answer["exit"]
    point = next(p for p in httpx.get(f"{url}/model").json()["operating_points"] if p["name"] == policy)
    expected = f"{100 * point['expected_accuracy']:.1f} % ± {100 * point['standard_error']:.1f}"
    assert f"Expected on average: {expected} accuracy, " in texts(page, "#summary")[0]
    assert texts(page, f"#policy option[value={policy}]")[0].startswith(f"{policy}: {expected} at ")


def test_points_that_coincide_say_so(page: Chrome, url: str) -> None:
    model = httpx.get(f"{url}/model").json()
    for point in model["operating_points"]:
        point["same_as"] = "accurate" if point["name"] == "fast" else None
    script = """
        const [model, done] = arguments, form = document.createElement("form");
        import("./ui/controls.js").then(({ buildControls }) => {
          buildControls(form, model, () => {});
          done(Array.from(form.querySelectorAll("option"), (option) => option.text.split(": ")[0]));
        });
    """
    names = page.execute_async_script(script, model)
    assert [name for name in names if "same" in name] == ["fast, same as accurate"]
    assert "accurate" in names


def test_a_threshold_set_by_keyboard_decides_which_images_leave(page: Chrome) -> None:
    choose(page, CAT)
    seen(page, ANSWERED)
    page.find_element(By.CSS_SELECTOR, ".modes input:checked").send_keys(Keys.ARROW_RIGHT)
    assert len(texts(page, ".choice:not([hidden])")) == 1
    first, second = page.find_elements(By.CSS_SELECTOR, ".slider input[id^=threshold]")
    for keys, exit in (((Keys.HOME, Keys.HOME), 1), ((Keys.END, Keys.HOME), 2), ((Keys.END, Keys.END), 3)):
        first.send_keys(keys[0])
        second.send_keys(keys[1])
        seen(page, ANSWERED, lambda text, k=exit: f"Stage {k}" in text)
    assert "all 3 stages ran" in texts(page, ".why")[0]


def test_a_file_that_is_no_picture_says_so_and_stops_no_other(page: Chrome, url: str, tmp_path: Path) -> None:
    wrong = tmp_path / "notes.png"
    wrong.write_text("no picture")
    choose(page, wrong, CAT)
    refused = seen(page, ".refused")
    assert refused.startswith("notes.png: ")
    problem = httpx.post(f"{url}/classify", files={"images": b"no picture"}, timeout=PATIENCE_SECONDS).json()
    assert refused == f"notes.png: {problem['errors'][0]['detail']}"
    seen(page, ANSWERED)
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
    seen(page, ANSWERED)
    assert "left" in texts(page, ".stage.left")[0]
    (spoken,) = texts(page, "#spoken")
    assert spoken.endswith(texts(page, ".why")[0])
    assert int(seen(page, ".fact b", lambda text: not text.startswith("0 ")).split()[0].replace(",", "")) >= 1
    assert "%" in seen(page, "#live .shares")


def test_nothing_is_asked_of_others_and_the_console_stays_silent(page: Chrome, url: str) -> None:
    choose(page, CAT)
    seen(page, ANSWERED)
    seen(page, "#live .shares")
    crop_of(page)
    assert page.get_log("browser") == []
    urls = [each.split(" ", 1)[1] for each in requests(page)]
    assert {f"{url}/classify", f"{url}/ui/app.js"} <= set(urls)
    assert [asked for asked in urls if not asked.removeprefix("blob:").startswith(f"{url}/")] == []


def test_a_service_that_went_away_is_reported_and_can_be_asked_again(page: Chrome, url: str) -> None:
    choose(page, CAT)
    seen(page, "#summary", lambda text: text != "")
    cut = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.execute_cdp_cmd("Network.emulateNetworkConditions", cut)
    try:
        pick(page, "accurate")
        assert seen(page, "#problem p") == "The service does not answer."
        assert texts(page, "#summary, .refused") == ["", "cat.jpg: not classified"]
    finally:
        page.execute_cdp_cmd("Network.emulateNetworkConditions", {**cut, "offline": False})
    page.find_element(By.ID, "retry").click()
    seen(page, ANSWERED)
    assert not page.find_element(By.ID, "problem").is_displayed()


def test_a_service_that_asks_for_a_key_gets_it_from_the_page(browser: Chrome, shipped: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key-of-20-letters-\na-key-for-few-things requests=3\n")
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
        seen(browser, ANSWERED)
        seen(browser, "#live .shares")
        assert 'Bearer $MSMLP_API_KEY"' in until(browser, "return document.querySelector('pre').textContent")

        browser.get(served.url)
        assert "no valid key" in seen(browser, "#problem p"), "the page has forgotten it"
        browser.find_element(By.ID, "key").send_keys("a-key-for-few-things", Keys.ENTER)
        seen(browser, "#policy")
        requests(browser)
        choose(browser, *pictures(tmp_path, 6))
        answered(browser, 6)
        sent = requests(browser).count(f"POST {served.url}/classify")
        assert sent > 6, "the key allows three requests a second: those refused are sent again"
    for log in ("browser", "performance"):
        browser.get_log(log)


def test_each_image_has_a_request_and_so_a_time_of_its_own(page: Chrome, url: str, tmp_path: Path) -> None:
    choose(page, *pictures(tmp_path, 3))
    answered(page, 3)
    assert requests(page).count(f"POST {url}/classify") == 3
    for shown, told in zip(texts(page, ".time"), texts(page, ".details section:last-child"), strict=True):
        assert f"Time: {shown}" in told
        total, *parts = (float(each) for each in re.findall(r"([\d.]+) ms", told))
        assert len(parts) >= 3
        assert sum(parts) == pytest.approx(total, abs=0.4), "nothing of another image's"


def encoded(kind: str, photo: str, size: tuple[int, int] | None = None, **options: object) -> bytes:
    """A photograph of scikit-image's as a file."""
    image = Image.fromarray(getattr(data, photo)())
    if kind == "GIF":
        image = image.quantize(64)
    elif options.pop("transparent", False):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    buffer = io.BytesIO()
    (image.resize(size) if size else image).save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    """A photograph whose EXIF says that it lies on its side."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encoded("JPEG", "coffee", exif=exif, quality=95)


SEEN: dict[str, tuple[Callable[[], bytes], float]] = {
    "as it is.png": (partial(encoded, "PNG", "coffee", (32, 32)), 0.0),
    "wide.png": (partial(encoded, "PNG", "chelsea"), 0.05),
    # Newer Pillows resample the height first where that is less work, and then round in between what they have then.
    "tall.png": (partial(encoded, "PNG", "coffee", (21, 34)), 0.5),
    "grey.png": (partial(encoded, "PNG", "camera"), 0.05),
    "transparent.png": (partial(encoded, "PNG", "astronaut", transparent=True), 0.05),
    "palette.gif": (partial(encoded, "GIF", "coffee"), 0.05),
    "wide.webp": (partial(encoded, "WEBP", "chelsea", lossless=True), 0.05),
    "small.jpg": (partial(encoded, "JPEG", "chelsea", (120, 90)), 0.5),
    # Much larger than needed, so decoded at a fraction by Pillow: an average is not quite the same.
    "turned.jpg": (turned, 1.0),
    "rocket.jpg": (partial(encoded, "JPEG", "rocket"), 1.0),
}
"""Images, and by how much the mean of what the page shows of one may differ from what the model gets, of 255."""


@pytest.mark.parametrize("name", SEEN)
def test_the_model_sees_what_the_page_shows(page: Chrome, tmp_path: Path, name: str) -> None:
    make, allowed = SEEN[name]
    content, file = make(), tmp_path / name
    file.write_bytes(content)
    choose(page, file)
    shown, given = crop_of(page), load_image(content, 32)
    assert shown.shape == given.shape
    assert np.abs(shown.astype(float) - given).mean() <= allowed
    with Image.open(file) as image:
        size = image.size[::-1] if name == "turned.jpg" else image.size
    assert texts(page, ".figures figcaption") == [f"{size[0]} \u00d7 {size[1]}", "The model sees 32 \u00d7 32"]


@pytest.mark.parametrize(("shorter_side", "kind"), [(32, "bicubic"), (39, "bicubic"), (36, "bilinear")])
def test_of_an_imported_cascade_it_shows_what_that_sees(
    browser: Chrome, digits: Any, tmp_path: Path, shorter_side: int, kind: str
) -> None:
    said = Preprocessing(MEAN, STD, shorter_side=shorter_side, filter=kind)
    folder = imported(tmp_path / "own", digits, network(digits, 32, 4), preprocessing=[said])
    views = load_weights(folder).manifest.views
    with msmlp_serve(folder, "--max-batch", "2") as served:
        served.wait_for("engine: ready")
        for name in ("wide.png", "small.jpg", "rocket.jpg"):
            content, file = SEEN[name][0](), tmp_path / name
            file.write_bytes(content)
            browser.get(served.url)
            seen(browser, "#policy")
            choose(browser, file)
            shown, given = crop_of(browser), load_image(content, views)
            assert shown.shape == given.shape
            assert np.abs(shown.astype(float) - given).mean() <= 0.5


def test_one_click_tells_what_the_other_exits_would_have_said(page: Chrome, url: str, tmp_path: Path) -> None:
    image = corner(tmp_path)
    pick(page, "p01")  # which takes the first exit's word
    choose(page, image)
    seen(page, ANSWERED, lambda text: "Stage 1" in text)
    every = asked(url, image, min_exit="3")["results"][0]["stages"]
    assert every[0]["label"] != every[2]["label"]
    assert texts(page, ".unrun .says") == []
    button = page.find_element(By.CSS_SELECTOR, ".others button")
    button.send_keys(Keys.ENTER)
    said = seen(page, ".others:not(:has(button))")
    for stage in every[1:]:
        assert f"exit {stage['stage']} says {stage['label']} ({100 * stage['confidence']:.0f} %)" in said
    assert page.execute_script("return document.activeElement.innerText") == said
    assert [each.split()[0] for each in texts(page, ".unrun .says")] == [stage["label"] for stage in every[1:]]
    assert "last exit: cat" in texts(page, ".label")[0]

    # It stays true, and there, whatever is chosen next.
    requests(page)
    pick(page, "fast")
    assert "changed nothing" in seen(page, ".others", lambda text: text != said)
    assert requests(page).count(f"POST {url}/classify") == 1


def test_the_other_exits_are_asked_while_an_image_is_asked_again(page: Chrome, tmp_path: Path) -> None:
    choose(page, corner(tmp_path))
    seen(page, ANSWERED)
    with slow_network(page, latency_ms=1500):
        pick(page, "p01")
        until(page, "return document.querySelector('.card.waiting') !== null")
        click(page, ".others button")
        assert "exit 3 says cat" in seen(page, ".others:not(:has(button))", lambda text: "disagree" in text)


def test_many_images_are_compared_with_the_last_exit_at_once(page: Chrome, url: str, tmp_path: Path) -> None:
    files = pictures(tmp_path, 5)
    pick(page, "p01")
    choose(page, *files)
    answered(page, 5)
    page.find_element(By.ID, "compare").send_keys(Keys.ENTER)
    said = seen(page, "#summary", lambda text: "every stage run" in text)
    until(page, "return document.activeElement.id === 'summary'")  # the button is gone
    first = [asked(url, file, policy="p01")["results"][0]["label"] for file in files]
    last = [asked(url, file, min_exit="3")["results"][0]["label"] for file in files]
    kept = sum(one == other for one, other in zip(first, last, strict=True))
    assert f"{kept} of 5 images would keep the label" in said
    assert len(texts(page, ".dissent")) == 5 - kept
    assert "exit 1: 5" in said
    assert not page.find_element(By.ID, "compare").is_displayed()


def test_many_images_are_a_compact_list_whose_lines_open(page: Chrome, tmp_path: Path) -> None:
    choose(page, *pictures(tmp_path, 60))
    answered(page, 60)
    assert page.execute_script("return document.documentElement.scrollHeight") < 4000
    assert texts(page, ".body:not([hidden])") == []
    assert page.execute_script("return document.querySelectorAll('.stage, canvas').length") == 0, "made when seen"
    row = page.find_element(By.CSS_SELECTOR, ".card:nth-child(30) .row")
    row.send_keys(Keys.ENTER)
    seen(page, ".card:nth-child(30) .stage.left")
    crop_of(page)
    assert row.get_attribute("aria-expanded") == "true"
    row.send_keys(Keys.ENTER)
    assert texts(page, ".body:not([hidden])") == []
    click(page, "#clear")
    assert texts(page, ".card, #summary > *") == []


CHOICES = [
    ("policy", "fast"),
    ("policy", "p05"),
    ("thresholds", "0.91234,0.61234"),
    ("budget_gflops", "0.006"),
    ("min_accuracy", "0.85"),
    ("budget_gflops", "1"),
    ("min_accuracy", "0.5"),
]

MARKED = """
const middle = (node) => { const box = node.getBBox(); return [box.x + box.width / 2, box.y + box.height / 2] };
const point = [...document.querySelectorAll(".point")].find((each) => each.textContent.startsWith(arguments[0] + ":"));
const [mark, place] = [document.querySelector(".chosen circle"), point.querySelector("circle")].map(middle);
return [mark[0] - place[0], mark[1] - place[1]];
"""
"""How far the mark in the plot is from a point."""


@pytest.mark.parametrize(("option", "value"), CHOICES)
def test_a_choice_in_the_address_is_made_and_the_plot_marks_it(page: Chrome, url: str, option: str, value: str) -> None:
    page.get(f"{url}/?{option}={value}")
    seen(page, ".choice:not([hidden])")
    point = asked(url, **{option: value})["operating_point"]
    accuracy = f"{100 * point['expected_accuracy']:.1f} % ± {100 * point['standard_error']:.1f}"
    chances = f"{accuracy} accuracy at {point['expected_gflops']:#.3g} GFLOPs"
    if option != "thresholds":  # whose expectation only the service knows
        assert seen(page, ".frontier figcaption").startswith(f"{point['name']}: {chances}")
    choose(page, CAT)
    thresholds = ", ".join(f"{each:.3f}" for each in point["thresholds"])
    assert f"thresholds {thresholds})" in seen(page, "#summary", lambda text: text != "")
    assert chances in seen(page, ".frontier figcaption")
    if point["name"]:
        assert page.execute_script(MARKED, point["name"]) == pytest.approx([0, 0], abs=0.01)
    assert page.current_url.endswith(f"/?{option}={value}")


EQUAL = """
const done = arguments[arguments.length - 1];
import("/ui/frontier.js").then(({ buildFrontier }) => {
  const model = JSON.parse(arguments[0]);
  for (const each of [...model.operating_points, ...model.results]) each.accuracy = each.expected_accuracy = 1;
  const figure = document.createElement("figure");
  buildFrontier(figure, model, () => {});
  done(figure.innerHTML);
});
"""


def test_the_plot_of_exits_that_are_all_right_has_numbers(page: Chrome, url: str) -> None:
    drawn = page.execute_async_script(EQUAL, json.dumps(model_of(url)))
    assert "<circle" in drawn
    assert "NaN" not in drawn


def test_a_file_that_can_no_longer_be_read_does_not_hold_up_the_others(page: Chrome, tmp_path: Path) -> None:
    first, second = pictures(tmp_path, 2)
    choose(page, first, second)
    answered(page, 2)
    first.write_bytes(first.read_bytes() + b"changed")
    pick(page, "fast")
    assert seen(page, ".refused").endswith("this file cannot be read; choose it again")
    answered(page, 1)
    assert not page.find_element(By.ID, "problem").is_displayed()


def test_the_address_follows_the_choice_and_a_reload_brings_it_back(page: Chrome) -> None:
    address = page.current_url
    pick(page, "fast")
    until(page, "return location.search === '?policy=fast'")
    click(page, ".modes input[value=thresholds]")
    page.find_element(By.ID, "threshold-2").send_keys(Keys.HOME)
    until(page, "return /^\\?thresholds=0\\.\\d+,0$/.test(location.search)")
    before = page.current_url
    page.refresh()
    assert seen(page, ".slider:nth-child(2) output") == "0.000"
    assert page.current_url == before
    assert page.find_element(By.CSS_SELECTOR, ".modes input[value=thresholds]").is_selected()
    assert before.startswith(address)


WRONG = ["policy=nonsense", "thresholds=0.9", "thresholds=0.9,2", "budget_gflops=", "min_accuracy=1"]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_choice_that_the_model_does_not_offer_is_said(page: Chrome, url: str, wrong: str) -> None:
    page.get(f"{url}/?{wrong}")
    assert seen(page, "#note") == f"This model does not offer {wrong.replace('=', ' = ')}: the default is used."
    assert page.find_element(By.ID, "policy").get_attribute("value") == model_of(url)["default_policy"]


def test_a_point_of_the_plot_can_be_clicked(page: Chrome) -> None:
    choose(page, CAT)
    seen(page, ANSWERED)
    page.execute_script(
        "[...document.querySelectorAll('.point')].find((each) => each.textContent.startsWith('p05:'))"
        ".dispatchEvent(new MouseEvent('click'))"
    )
    seen(page, "#summary", lambda text: "(p05 thresholds" in text)
    assert page.find_element(By.ID, "policy").get_attribute("value") == "p05"


def test_the_strip_says_what_the_metrics_say(page: Chrome) -> None:
    """Of 100 images, 40 took 2 to 5 ms, and 60 took 10 to 20 ms: the 50th is a sixth into these."""
    script = """
    const done = arguments[0];
    const sample = (name, value, labels = {}) => ({ name, labels, value });
    const buckets = { "0.002": 0, "0.005": 40, "0.01": 40, "0.02": 100, "+Inf": 100 };
    const samples = [
      ...Object.entries(buckets).map(([le, value]) => sample("msmlp_image_seconds_bucket", value, { exit: "1", le })),
      sample("msmlp_images_total", 75, { exit: "1", reason: "confident" }),
      sample("msmlp_images_total", 25, { exit: "2", reason: "final" }),
      sample("msmlp_gflops_total", 1), sample("msmlp_gflops_saved_total", 3),
      sample("msmlp_throughput_images_per_second", 12.34),
      sample("msmlp_queue_images", 3, { stage: "1" }), sample("msmlp_queue_images", 4, { stage: "2" }),
      sample("msmlp_brownout_level", 2),
    ];
    import(new URL("ui/live.js", location.href)).then(({ facts }) => {
      const fact = (node) => [...node.children].map((part) => part.textContent);
      const told = (nodes) => Object.fromEntries(nodes.map(fact));
      const half = samples.map((each) => ({ ...each, value: each.value / 2 }));
      done([told(facts(samples, [])), told(facts(samples, half)), told(facts(samples, samples))]);
    });
    """
    start, minute, idle = page.execute_async_script(script)
    assert start == {
        "Since its start": "100 images",
        "Compute saved": "75 %",
        "Left at exit": "1: 75 %2: 25 %",
        "p50": "12 ms",
        "p99": "20 ms",
        "Images/s": "12.3",
        "Queue": "7",
        "Brown-out": "level 2",
    }
    first = start.pop("Since its start")
    assert (first, minute.pop("Last minute"), idle.pop("Since its start")) == ("100 images", "50 images", "100 images")
    assert minute == idle == start
