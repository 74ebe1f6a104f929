"""What a browser shows of a picture is what the service sees: the corpus of tests/pictures, on a canvas over white."""

import base64

import numpy as np
import pytest
from numpy.typing import NDArray
from selenium.webdriver import Chrome

from tests.fakes import PATIENCE_SECONDS
from tests.pictures import PICTURES, seen

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore")]

DRAW = """
const [files, done] = arguments;
async function draw(file) {
  const image = new Image();
  image.src = "data:application/octet-stream;base64," + file;
  try { await image.decode(); } catch { return null; }
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.height, canvas.width, btoa(String.fromCharCode(...data))];
}
Promise.all(files.map(draw)).then(done);
"""
ALPHA, LOSSY = 1, 2
"""Levels: a canvas keeps colours multiplied by alpha, in 8 bits, and so rounds twice. Of a lossy format each decoder
may round on its way from frequencies to colours; of the versions at hand only those of CMYK differ, by 1."""

Shows = dict[str, NDArray[np.uint8] | None]


@pytest.fixture(scope="module")
def browsers(browser: Chrome) -> Shows:
    """What the browser shows of each picture, RGB over white; None if it refuses it."""
    browser.set_script_timeout(PATIENCE_SECONDS)
    browser.get("about:blank")
    found = browser.execute_async_script(DRAW, [base64.b64encode(each.data).decode() for each in PICTURES.values()])
    return {
        name: drawn and np.frombuffer(base64.b64decode(drawn[2]), np.uint8).reshape(*drawn[:2], 4)[..., :3]
        for name, drawn in zip(PICTURES, found, strict=True)
    }


@pytest.mark.parametrize("name", [name for name, shown in PICTURES.items() if not shown.browser])
def test_the_service_sees_what_a_browser_shows(browsers: Shows, name: str) -> None:
    found, wanted = seen(PICTURES[name].data), browsers[name]
    assert wanted is not None
    assert found.shape == wanted.shape
    pixels = PICTURES[name].pixels
    allowed = LOSSY if PICTURES[name].loss else ALPHA if (pixels != np.rint(pixels)).any() else 0
    assert np.abs(found.astype(int) - wanted).max() <= allowed


@pytest.mark.parametrize("name", [name for name, shown in PICTURES.items() if shown.browser])
def test_where_a_browser_shows_something_else_there_is_a_reason(browsers: Shows, name: str) -> None:
    wanted = browsers[name]
    assert wanted is None or np.abs(PICTURES[name].pixels - wanted).max() > LOSSY, "the browser has come round"
