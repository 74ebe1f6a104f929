"""`import msmlp` and `msmlp.load`: the same answers and the same errors as a service's, without one."""

import io
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import msmlp
from msmlp.client.local import Model
from msmlp.model.errors import CallerError, DeviceError
from msmlp.service.engine.messages import Cancelled
from tests.fakes import FakeBackend, picture, pictures
from tests.servers import Submissions, Told, fake_backend, fake_service

MEASURED = {
    "deadline_margin_ms",
    "request_id",
    "latency_ms",
    "throughput_images_per_second",
    "queue_ms",
    "compute_ms",
    "batch_size",
}


def said(document: Any) -> Any:
    """An answer without its id and what a clock measured; what differs between batch sizes is rounded away."""
    if isinstance(document, dict):
        return {name: said(value) for name, value in document.items() if name not in MEASURED}
    if isinstance(document, list):
        return [said(value) for value in document]
    return pytest.approx(document, abs=1e-5) if isinstance(document, float) else document


def png(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.fixture
def photograph(cat_photo: bytes) -> Image.Image:
    return Image.open(io.BytesIO(cat_photo)).convert("RGB")


@pytest.fixture
def client(url: str) -> Iterator[msmlp.Client]:
    with msmlp.Client(url) as client:
        yield client


# --- the module --------------------------------------------------------------------------------------------------


def test_importing_costs_nothing_until_something_is_used() -> None:
    heavy = ("torch", "fastapi", "starlette", "httpx", "numpy", "PIL", "pydantic", "typer")
    program = f"import sys, msmlp; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_name_is_there() -> None:
    assert dir(msmlp) == list(msmlp.__all__)
    assert all(getattr(msmlp, name) for name in msmlp.__all__)
    with pytest.raises(AttributeError, match="lod"):
        _ = msmlp.lod


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [
        ("Client", "httpx", "msmlp[client]"),
        ("AsyncClient", "httpx", "msmlp[client]"),
        ("load", "pydantic_settings", "msmlp[cpu,serve]"),
    ],
)
def test_where_a_package_is_missing_the_error_names_the_extra(name: str, package: str, install: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from msmlp import {name}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert f'msmlp.{name} needs the package {package}: pip install "{install}"' in last
    assert "During handling" not in done.stderr


# --- images ------------------------------------------------------------------------------------------------------


def test_a_photograph_is_the_same_however_it_is_handed_over(
    model: msmlp.Model, photograph: Image.Image, tmp_path: Path
) -> None:
    file = png(photograph)
    path = tmp_path / "cat.png"
    path.write_bytes(file)
    forms = [file, path, str(path), bytearray(file), photograph, np.asarray(photograph), np.asarray(photograph)[None]]
    # A batch of one each time, so to the bit.
    answers = [model(form, thresholds=[1, 1]).results[0] for form in forms]
    scores = [[stage.score for stage in answer.stages] for answer in answers]
    assert len(scores[0]) == 3
    assert scores == [scores[0]] * len(forms)
    assert {json.dumps(answer.top_k) for answer in answers} == {json.dumps(answers[0].top_k)}


def test_a_service_gets_it_however_it_is_handed_over(client: msmlp.Client, cat_photo: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(cat_photo)
    expected = client.classify(path, thresholds=[1, 1]).results[0].top_k
    with path.open("rb") as opened:
        forms = [opened, io.BytesIO(cat_photo), str(path), cat_photo, bytearray(cat_photo)]
        assert [client.classify(form, thresholds=[1, 1]).results[0].top_k for form in forms] == [expected] * len(forms)
    tensor = torch.zeros((8, 6, 3), dtype=torch.uint8)
    for images, told in ((tensor, "is a tensor, uint8"), (tensor.numpy() / 255, "is float64")):
        with pytest.raises((TypeError, ValueError), match=told):
            client.classify(images)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_a_pillow_image_of_any_mode_is_what_its_file_is(model: msmlp.Model, photograph: Image.Image, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257)
    else:
        image = photograph.convert(mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    stream = io.BytesIO()
    image.save(stream, "TIFF" if mode == "CMYK" else "PNG")
    sent = png(image.convert("RGB")) if mode == "CMYK" else stream.getvalue()  # no service reads TIFF
    assert model(image).results[0].top_k == model(sent).results[0].top_k


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_pillow_image_is_not_turned_as_xmp_alone_says(
    model: msmlp.Model, client: msmlp.Client, photograph: Image.Image, tmp_path: Path, kind: str
) -> None:
    path, xmp, info = tmp_path / "cat", b'<x tiff:Orientation="6"/>', PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    photograph.save(path, kind, **({"pnginfo": info} if kind == "PNG" else {"xmp": xmp, "lossless": True}))
    with Image.open(path) as opened:
        assert opened.getexif()[0x0112] == 6, "Pillow would turn it"
        answers = [each(image) for each in (model.classify, client.classify) for image in (path, opened)]
        top = json.dumps(model(photograph).results[0].top_k)
        assert [json.dumps(answer.results[0].top_k) for answer in answers] == [top] * 4
    with Image.open(path) as opened:  # EXIF decides, but for a WebP, as in a file
        opened.load()
        exif = Image.Exif()
        exif[0x0112] = 3
        opened.info["exif"] = exif.tobytes()
        shown = photograph if kind == "WEBP" else photograph.rotate(180)
        assert model(opened).results[0].top_k == model(shown).results[0].top_k


def test_a_pillow_image_is_turned_as_its_exif_block_says(model: msmlp.Model, photograph: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = png(photograph, exif=exif)
    turned = model(Image.open(io.BytesIO(file))).results[0]
    assert turned.top_k == model(file).results[0].top_k
    assert turned.top_k != model(photograph).results[0].top_k


def test_several_are_answered_in_their_order(model: msmlp.Model, digits: Any, digit_files: list[bytes]) -> None:
    mixed = [digit_files[0], Image.fromarray(digits.test[1]), digits.test[2], *digit_files[3:8]]
    answer = model(mixed, policy="accurate")
    assert [result.index for result in answer.results] == list(range(8))
    assert said(answer) == said(model(digits.test[:8], policy="accurate"))
    assert said(answer) == said(model(iter(digit_files[:8]), policy="accurate"))


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        ("no/such/file.png", FileNotFoundError, "no/such/file.png"),
        (np.zeros((32, 2, 2), np.uint8), ValueError, r"the image is uint8 \[32, 2, 2\]; expected uint8 \[H, W, 3\]"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3))], ValueError, r"images\[1\] is float64"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "uint8"),
        (7, TypeError, "images: expected one image or a sequence of them, got int"),
        ([None], TypeError, r"images\[0\] is a NoneType"),
        ([], ValueError, "expected at least one"),
    ],
)
def test_what_is_no_image_is_said_alike_by_both(
    model: msmlp.Model, client: msmlp.Client, images: Any, error: type[Exception], text: str
) -> None:
    for ask in (model, client.classify, model.stream, client.stream):
        with pytest.raises(error, match=text):
            ask(images)


# --- answers and errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": "fast"},
        {"thresholds": [0.5, 0.5], "top_k": 3},
        {"thresholds": np.array([1.0, 0.0])},
        {"thresholds": "0.3,1"},
        {"min_accuracy": 0.2, "degrade": False},
        {"budget_gflops": 1, "accuracy_floor": 0.1, "min_exit": 2},
        {"max_gflops": np.float32(0.1), "max_exit": np.int64(2), "deadline_ms": 1e6, "top_k": None},
    ],
    ids=str,
)
def test_a_service_and_a_model_answer_alike(
    model: msmlp.Model, client: msmlp.Client, digit_files: list[bytes], options: dict[str, Any]
) -> None:
    ours = model(digit_files[:24], request_id="mine", **options)
    theirs = client.classify(digit_files[:24], request_id="mine", **options)
    assert said(ours) == said(theirs)
    assert ours.request_id == theirs.request_id == "mine"
    assert [*ours] == [*theirs]
    assert ours.latency_ms > 0


def test_an_answer_is_its_document_with_attributes(model: msmlp.Model, digit_files: list[bytes]) -> None:
    answer = model(digit_files[0], thresholds=[1, 1])
    assert json.loads(json.dumps(answer)) == answer
    assert answer.results[0].stages[1].batch_size == answer["results"][0]["stages"][1]["batch_size"] == 1
    assert answer.operating_point.thresholds == [1, 1]
    assert answer.model.name == "tiny-digits"
    assert answer.results[0].top_k[0].label == answer.results[0].label
    with pytest.raises(AttributeError, match="no field 'lable'"):
        _ = answer.results[0].lable  # type: ignore[attr-defined]


def test_both_say_the_same_of_the_model(model: msmlp.Model, client: msmlp.Client) -> None:
    assert json.loads(json.dumps(model.model())) == client.model()


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": "many"},
        {"confidence": 1},
        {"thresholds": [0.5]},
        {"thresholds": [0.5, 2]},
        {"thresholds": (0.5, 0.5), "policy": "fast"},
        {"policy": "best"},
        {"policy": 5},
        {"min_accuracy": 1},
        {"budget_gflops": float("nan")},
        {"budget_gflops": 0},
        {"min_exit": 3, "max_exit": 2},
        {"degrade": "no"},
        {"deadline_ms": 0},
    ],
    ids=str,
)
def test_bad_options_are_the_same_error_from_both(
    model: msmlp.Model, client: msmlp.Client, digit_files: list[bytes], options: dict[str, Any]
) -> None:
    errors = []
    for ask in (model, client.classify):
        with pytest.raises(msmlp.ServiceError) as caught:
            ask(digit_files[:2], request_id="mine", **options)
        errors.append(vars(caught.value))
        assert str(caught.value) == caught.value.detail
    assert errors[0] == errors[1]
    assert errors[0]["status"] == (504 if "deadline_ms" in options else 422)


def test_bad_images_are_the_same_error_from_both(
    model: msmlp.Model, client: msmlp.Client, digit_files: list[bytes]
) -> None:
    for images, code, count in (
        ([digit_files[0], b"no image", digit_files[1][:60]], "undecodable_image", 2),
        (digit_files[:41], "too_many_images", 0),
    ):
        errors = []
        for ask in (model, client.classify, lambda i: next(model.stream(i)), lambda i: next(client.stream(i))):
            with pytest.raises(msmlp.ServiceError) as caught:
                ask(images)
            errors.append({**vars(caught.value), "request_id": None})
        assert errors == [errors[0]] * 4
        assert (errors[0]["code"], len(errors[0]["errors"])) == (code, count)


def test_an_option_that_cannot_be_written_down_and_stream_as_one(model: msmlp.Model, client: msmlp.Client) -> None:
    for ask in (model, client.classify):
        with pytest.raises(TypeError, match="set"):
            ask(b"", thresholds={0.5})
        with pytest.raises(TypeError, match=r"call .stream"):
            ask(b"", stream=True)


# --- streams -----------------------------------------------------------------------------------------------------


def test_a_stream_tells_every_exit_and_ends_as_the_answer(
    model: msmlp.Model, client: msmlp.Client, digit_files: list[bytes]
) -> None:
    images = digit_files[:6]
    answer = model(images, thresholds=[1, 1], top_k=2)
    for stream in (model.stream, client.stream):
        lines = list(stream(images, thresholds=[1, 1], top_k=2, request_id="mine"))
        assert len(lines) == 18
        assert {line.request_id for line in lines} == {"mine"}
        assert [line.reason for line in lines].count("goes_on") == 12
        final = sorted((line for line in lines if line.final), key=lambda line: line.index)
        assert [said(line.top_k) for line in final] == [said(result.top_k) for result in answer.results]
        assert [line.stages[2].stage for line in final] == [3] * 6
        assert {line.operating_point.source for line in final} == {"request"}


def test_a_stream_that_is_left_returns_its_permits(tiny_weights: Path, digit_files: list[bytes]) -> None:
    with msmlp.load(tiny_weights, device="cpu", capacity=4) as model:
        for _ in range(5):
            stream = model.stream(digit_files[:4], thresholds=[1, 1])
            next(stream)
            stream.close()
        assert len(model(digit_files[:4]).results) == 4


def test_a_model_is_closed_quietly_whatever_is_still_open(
    tiny_weights: Path, digit_files: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with msmlp.load(tiny_weights, device="cpu") as model:
        streams = [model.stream(digit_files[:4], thresholds=[1, 1]) for _ in range(3)]
        for stream in streams:
            next(stream)
    # An earlier test of the same process may have asked for what is said when all is well.
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert model._service.engine.admission.inflight == 0
    for stream in streams:
        with pytest.raises(RuntimeError, match="the model is closed"):
            next(stream)


# --- threads, ends, faults ---------------------------------------------------------------------------------------


def test_threads_get_their_own_answers(model: msmlp.Model, digits: Any) -> None:
    alone = [said(model(image, policy="accurate").results[0]) for image in digits.test[:24]]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda image: model(image, policy="accurate"), digits.test[:24]))
    assert [said(answer.results[0]) for answer in answers] == alone
    assert len({answer.request_id for answer in answers}) == 24


@pytest.fixture
def fake(tiny_weights: Path) -> Iterator[Callable[..., tuple[Model, FakeBackend]]]:
    """A model on a fake backend, and that backend; the settings are the keywords."""
    models = []

    def make(**settings: Any) -> tuple[Model, FakeBackend]:
        backend = fake_backend(capacity=settings.get("capacity", 1024))
        models.append(Model(fake_service(tiny_weights, lambda: backend, **settings)))
        return models[-1], backend

    yield make
    for model in models:
        model.close()


def test_images_in_flight_are_answered_before_the_end(fake: Callable[..., tuple[Model, FakeBackend]]) -> None:
    model, backend = fake()
    with ThreadPoolExecutor(2) as pool, backend.gate.held():
        answering = pool.submit(model, picture(0.9, label=3, size=32), thresholds=[0.5, 0.5])
        backend.gate.wait_until_reached()
        closing = pool.submit(model.close)
        assert not answering.done()
    assert answering.result().results[0].class_id == 3
    assert closing.result() is None
    model.close()
    for ask in (model, lambda image: next(model.stream(image))):
        with pytest.raises(RuntimeError, match="the model is closed"):
            ask(picture(0.9, size=32))
    assert not [thread for thread in threading.enumerate() if thread is model._thread]


def test_threads_share_batches(fake: Callable[..., tuple[Model, FakeBackend]]) -> None:
    model, backend = fake()
    handed_over = Submissions(model._service.engine)
    with ThreadPoolExecutor(4) as pool, backend.gate.held():
        first = pool.submit(model, picture(0.9, size=32), max_exit=1)
        backend.gate.wait_until_reached()
        handed_over.wait_for(1)
        others = [pool.submit(model, picture(0.9, label=label, size=32), max_exit=1) for label in range(3)]
        handed_over.wait_for(3)
    assert [other.result().results[0].class_id for other in others] == [0, 1, 2]
    assert first.result().results[0].stages[0].batch_size == 1
    assert [other.result().results[0].stages[0].batch_size for other in others] == [3, 3, 3]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_returns_the_permits(fake: Callable[..., tuple[Model, FakeBackend]]) -> None:
    model, backend = fake(capacity=1)

    def interrupt() -> None:
        backend.gate.wait_until_reached()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    cancelled = Told(model._service.engine, Cancelled)
    with backend.gate.held():
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            model(picture(0.9, size=32))
        interrupting.join()
    cancelled.wait()
    assert model(picture(0.9, label=2, size=32), max_exit=1).results[0].class_id == 2


def test_too_many_at_once_are_shed_as_a_service_does(fake: Callable[..., tuple[Model, FakeBackend]]) -> None:
    model, backend = fake(capacity=4)
    with ThreadPoolExecutor(1) as pool, backend.gate.held():
        first = pool.submit(model, pictures(3, 0.9, size=32))
        backend.gate.wait_until_reached()
        with pytest.raises(msmlp.ServiceError) as caught:
            model(pictures(2, 0.9, size=32))
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "overloaded", 1)
    assert len(first.result().results) == 3


def test_a_device_that_fails_is_an_error_and_the_next_may_work(
    fake: Callable[..., tuple[Model, FakeBackend]],
) -> None:
    model, backend = fake()

    def fail(stage: int, pixels: Any) -> None:
        raise RuntimeError("no more memory")

    backend.fail, works = fail, backend.fail
    for ask in (model, lambda image: list(model.stream(image))):
        with pytest.raises(msmlp.ServiceError) as caught:
            ask(picture(0.9, size=32))
        assert (caught.value.status, caught.value.code) == (503, "engine_down")
    backend.fail = works
    assert model(picture(0.9, size=32), thresholds=[0.5, 0.5]).results[0].exit == 1


def test_weights_settings_and_devices_that_do_not_fit(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CallerError, match="there is no weights folder"):
        msmlp.load(tmp_path / "nowhere")
    with pytest.raises(CallerError, match=r"^max_batch: "):
        msmlp.load(tiny_weights, max_batch=0)
    for value in ("red", None):
        with pytest.raises(CallerError, match=r"^colour: no such setting; expected one of weights, .*, max_batch, "):
            msmlp.load(tiny_weights, colour=value)
    monkeypatch.setenv("MSMLP_CAPACITY", "0")
    with pytest.raises(CallerError, match=r"^MSMLP_CAPACITY: "):
        msmlp.load(tiny_weights)
    monkeypatch.delenv("MSMLP_CAPACITY")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CallerError, match="cuda is not available here"):
        msmlp.load(tiny_weights, device="cuda")

    def broken() -> Any:
        raise DeviceError("no such device")

    with pytest.raises(msmlp.MsmlpError, match="the engine could not start: no such device"):
        Model(fake_service(tiny_weights, broken))


def test_a_program_that_never_closes_ends_all_the_same(tiny_weights: Path, cat_photo: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(cat_photo)
    program = f"import msmlp; print(msmlp.load({str(tiny_weights)!r}, device='cpu')({str(path)!r}).results[0].exits)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
