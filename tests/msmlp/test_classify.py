"""`msmlp classify`: through a service and in-process; tables, streams, one document, and mistakes by file name."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from PIL import Image

import msmlp
from msmlp import classify
from msmlp.classify import Table
from msmlp.main import app
from msmlp.service.options import RequestOptions
from tests.fakes import PATIENCE_SECONDS
from tests.msmlp.scripted import SILENT, Reply, refusal, scripted
from tests.processes import COMMAND, Call, environment, run_msmlp
from tests.servers import fake_backend, fake_service, serving, wait_until

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def files(digit_files: list[bytes], tmp_path: Path) -> list[Path]:
    """Twelve digits as files, 0.png to 11.png."""
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path, content in zip(paths, digit_files[:12], strict=True):
        path.write_bytes(content)
    return paths


@pytest.fixture
def document(call: Call, url: str, capsys: Captured) -> Callable[..., dict[str, Any]]:
    """What `msmlp classify --json` prints, through the service."""

    def ask(*arguments: str | Path) -> dict[str, Any]:
        assert call("classify", "--url", url, "--json", *arguments) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        found: dict[str, Any] = json.loads(printed.out)
        return found

    return ask


def left_out(capsys: Captured) -> tuple[list[str], str]:
    """What is told of files that were left out, and what is printed of the others."""
    printed = capsys.readouterr()
    told = [line.removeprefix("msmlp: ") for line in printed.err.splitlines()]
    return told, printed.out


def mistake(capsys: Captured) -> str:
    """What a mistake leaves: one line on stderr, nothing on stdout."""
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("msmlp: ")
    return line


# --- options -----------------------------------------------------------------------------------------------------


def test_it_takes_every_option_of_a_request() -> None:
    command: Any = typer.main.get_command(app).commands["classify"]  # type: ignore[attr-defined]
    assert set(RequestOptions.model_fields) <= {parameter.name for parameter in command.params}


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--thresholds", "0.5,1"], {"thresholds": [0.5, 1.0]}),
        (["--policy", "fast", "--no-degrade"], {"policy": "fast", "degrade": False}),
        (["--budget-gflops", "1", "--min-exit", "2"], {"budget_gflops": 1.0, "min_exit": 2}),
        (["--min-accuracy", "0.2", "--max-exit", "1"], {"min_accuracy": 0.2, "max_exit": 1}),
        (
            ["--accuracy-floor", "0.1", "--top-k", "2", "--degrade"],
            {"accuracy_floor": 0.1, "top_k": 2, "degrade": True},
        ),
        (["--max-gflops", "0.5", "--deadline-ms", "600000"], {"max_gflops": 0.5, "deadline_ms": 600_000.0}),
    ],
    ids=str,
)
def test_the_service_gets_them_as_they_were_given(
    document: Callable[..., dict[str, Any]],
    model: msmlp.Model,
    files: list[Path],
    words: list[str],
    options: dict[str, Any],
) -> None:
    printed, expected = document(*files[:3], *words), model(files[:3], **options)
    assert printed["operating_point"] == expected.operating_point
    assert [(r["label"], r["exit"], r["reason"], len(r["top_k"])) for r in printed["results"]] == [
        (r.label, r.exit, r.reason, len(r.top_k)) for r in expected.results
    ]


# --- one document ------------------------------------------------------------------------------------------------


def test_the_document_is_the_services_answer(
    document: Callable[..., dict[str, Any]], model: msmlp.Model, files: list[Path]
) -> None:
    printed, answer = document(*files), model(files)
    assert [*printed] == [*answer]
    assert [*printed["results"][0]] == [*answer.results[0]]
    assert [result["class_id"] for result in printed["results"]] == [result.class_id for result in answer.results]


def test_in_process_it_is_the_same(tiny_weights: Path, model: msmlp.Model, files: list[Path]) -> None:
    done = run_msmlp(
        "classify", *files[:4], "--weights", tiny_weights, "--json", "--thresholds", "1,0", MSMLP_DEVICE="cpu"
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer = model(files[:4], thresholds=[1, 0])
    printed = json.loads(done.stdout)
    assert printed["model"] == answer.model
    assert [(r["label"], r["exit"]) for r in printed["results"]] == [(r.label, 2) for r in answer.results]


def test_more_files_than_a_request_may_hold(
    document: Callable[..., dict[str, Any]],
    model: msmlp.Model,
    files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classify, "AT_ONCE", 60)
    many = (files * 9)[:101]  # 60 and 41, where the service takes 40
    printed = document(*many, "--policy", "fast")
    assert [result["index"] for result in printed["results"]] == list(range(101))
    once = [result.class_id for result in model(files, policy="fast").results]
    assert [result["class_id"] for result in printed["results"]] == (once * 9)[:101]
    assert printed["operating_point"]["name"] == "fast"


def test_more_pixels_than_a_request_may_have(
    call: Call, capsys: Captured, tiny_weights: Path, files: list[Path]
) -> None:
    with Image.open(files[0]) as image:
        pixels = image.width * image.height
    with serving(fake_service(tiny_weights, fake_backend, max_request_pixels=3 * pixels)) as client:
        assert call("classify", "--url", str(client.base_url), "--json", *files) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == len(files)


def test_standard_input(
    document: Callable[..., dict[str, Any]],
    model: msmlp.Model,
    files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(files[5].read_bytes())))
    printed = document("-", files[0])
    assert [result["class_id"] for result in printed["results"]] == [
        result.class_id for result in model([files[5], files[0]]).results
    ]


# --- for people --------------------------------------------------------------------------------------------------


def test_the_table_says_what_and_why_and_what_it_cost(
    call: Call, capsys: Captured, url: str, model: msmlp.Model, files: list[Path]
) -> None:
    assert call("classify", *files, "--url", url, "--thresholds", "0.5,0.5") == 0
    head, *rows, summary = capsys.readouterr().out.splitlines()
    answer, full = model(files, thresholds=[0.5, 0.5]), model.model()["exits"][-1]["gflops"]
    assert head.split() == ["file", "label", "confidence", "exit", "why", "GFLOPs", "of", "full", "ms"]
    assert len(rows) == 12
    for path, row, result in zip(files, rows, answer.results, strict=True):
        assert result.confidence is not None
        assert row.split()[-4] == f"{result.gflops:.3g}"
        said = f" {result.label}  {100 * result.confidence:9.1f} % "
        assert path.name in row
        assert " ".join(said.split()) in " ".join(row.split())
        assert f"{result.exit} of 3 {result.reason}" in " ".join(row.split())
        assert f"{100 * result.gflops / full:.0f} %" in row
    mean = sum(result.gflops for result in answer.results) / 12
    assert summary.startswith(
        f"12 images: {mean:.3g} GFLOPs on average, {100 * mean / full:.0f} % of the full cascade's"
    )
    assert "operating point 0.5, 0.5 (request)" in summary
    point = answer.operating_point
    assert f"expected accuracy {100 * point.expected_accuracy:.1f} % ± {100 * point.standard_error:.1f}" in summary


def test_a_service_that_says_no_standard_error_is_understood(model: msmlp.Model, files: list[Path]) -> None:
    answer = model(files[0])
    older = msmlp.OperatingPoint({k: v for k, v in answer.operating_point.items() if k != "standard_error"})
    summary = Table(["a.png"], model.model(), "utf-8", top=False).summary(answer.results, older)
    assert summary.endswith(f"expected accuracy {100 * older.expected_accuracy:.1f} %")


def test_an_image_without_an_answer_has_its_row(model: msmlp.Model, files: list[Path]) -> None:
    nothing = {"label": None, "confidence": None, "exit": None, "top_k": [], "stages": [], "gflops": 0.0}
    expired = msmlp.Result({**model(files[0]).results[0], **nothing, "reason": "expired"})
    row = Table(["a.png"], model.model(), "utf-8", top=True).row(0, expired)
    assert row.split()[:6] == ["a.png", "-", "-", "of", "3", "expired"]


def test_further_classes_stand_below_the_first(
    call: Call, capsys: Captured, url: str, model: msmlp.Model, files: list[Path]
) -> None:
    assert call("classify", files[0], "--url", url, "--top-k", "3") == 0
    rows = capsys.readouterr().out.splitlines()[1:4]
    top = model(files[0]).results[0].top_k[:3]
    for row, each in zip(rows, top, strict=True):
        assert f"{each.label} {100 * each.probability:.1f} %" in " ".join(row.split())


def test_a_stream_shows_every_exit(call: Call, capsys: Captured, url: str, files: list[Path]) -> None:
    assert call("classify", files[0], files[1], "--url", url, "--stream", "--thresholds", "1,1") == 0
    _, *rows, summary = capsys.readouterr().out.splitlines()
    assert len(rows) == 6
    for number in (1, 2):
        assert sum(f"{number} of 3  goes on" in row for row in rows) == 2
    assert sum("3 of 3  final" in row for row in rows) == 2
    assert summary.startswith("2 images: ")
    assert "100 % of the full cascade" in summary


def test_odd_names_are_shown_without_harm(call: Call, capsys: Captured, url: str, files: list[Path]) -> None:
    odd = files[0].rename(files[0].with_name("\x1b[31mred\udcff.png"))
    long = files[1].rename(files[1].with_name(100 * "x" + "-the-end.png"))
    assert call("classify", odd, long, "--url", url) == 0
    _, first, second, _ = capsys.readouterr().out.splitlines()
    assert "\x1b" not in first
    assert "?[31mred?.png" in first
    assert second.startswith("...x")
    assert "-the-end.png" in second


# --- mistakes ----------------------------------------------------------------------------------------------------


def test_mistakes_name_the_file_or_the_option(call: Call, capsys: Captured, url: str, files: list[Path]) -> None:
    nowhere, empty = files[0].with_name("nowhere.png"), files[0].parent / "empty"
    empty.mkdir()
    for words, said in (
        ([nowhere], f"{nowhere}: No such file or directory"),
        ([empty], f"{empty}: is a folder without image files"),
        ([files[0], "--top-k", "0"], "top_k: expected a whole number from 1 to 1e9"),
        ([files[0], "--thresholds", "0.5"], "thresholds: 1 number given; expected 2"),
        ([files[0], "--policy", "fast", "--min-accuracy", "0.2"], "give only one of"),
        ([files[0], "--min-accuracy", "1"], "expected 0 to "),
        ([files[0], "--weights", "weights"], "--weights"),
        ([files[0], "--stream", "--json"], "--stream"),
        ([files[0], "--url", f"{url}/x"], f"{url}/x/classify: no such path"),
        ([files[0], "--url", "localhost:8000"], "'localhost:8000' is not the address"),
        ([], "Missing argument"),
    ):
        assert call("classify", "--url", url, *words) == 2, words
        assert said in mistake(capsys)


@pytest.mark.parametrize("how", ["table", "stream", "json"])
def test_files_that_cannot_be_classified_are_named_and_the_others_go_on(
    how: str, call: Call, capsys: Captured, url: str, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify, "AT_ONCE", 5)
    files[7].write_bytes(files[7].read_bytes()[:40])
    for number in (2, 8):
        files[number].write_text("no image")
    files[3].unlink()
    files[3].symlink_to("/proc/self/mem")  # not even for root
    words = [] if how == "table" else [f"--{how}"]
    assert call("classify", *files, "--url", url, "--thresholds", "0,0", *words) == 2
    told, printed = left_out(capsys)
    assert [line.partition(": ")[0] for line in told] == [str(files[number]) for number in (3, 2, 7, 8)]
    assert "Input/output error" in told[0]
    assert "not a readable image" in told[1]
    well = [number for number in range(len(files)) if number not in (2, 3, 7, 8)]
    if how == "json":
        assert [result["index"] for result in json.loads(printed)["results"]] == well
    else:
        _, *rows, summary = printed.splitlines()
        assert [f"{number}.png" in row for number, row in zip(well, rows, strict=True)] == [True] * len(well)
        assert summary.startswith(f"{len(well)} images: ")


def test_a_folder_is_its_image_files(call: Call, capsys: Captured, url: str, files: list[Path]) -> None:
    files[0].with_name("notes.txt").write_text("no image")
    assert call("classify", files[0].parent, "--url", url) == 0
    rows = capsys.readouterr().out.splitlines()[1:-1]
    assert [row.split()[0].rpartition("/")[2] for row in rows] == sorted(path.name for path in files)


def test_odd_names_are_told_without_harm(call: Call, capsys: Captured, url: str, files: list[Path]) -> None:
    assert call("classify", files[0].with_name("\x1b[31mred.png"), "--url", url) == 2
    assert "?[31mred.png: No such file" in mistake(capsys)


def test_in_process_mistakes_are_the_same(
    call: Call, capsys: Captured, tiny_weights: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSMLP_DEVICE", "cpu")
    files[1].write_text("no image")
    assert call("classify", files[1], files[0], "--weights", tiny_weights) == 2
    told, printed = left_out(capsys)
    assert told[0].startswith(f"{files[1]}: not a readable image")
    assert "0.png" in printed
    assert call("classify", files[1], "--weights", tiny_weights) == 2
    assert f"{files[1]}: not a readable image" in mistake(capsys)
    assert call("classify", files[0], "--weights", tiny_weights / "nowhere") == 2
    assert "there is no weights folder" in mistake(capsys)


def test_faults_that_are_not_the_callers_are_status_1(call: Call, capsys: Captured, files: list[Path]) -> None:
    with scripted(refusal(500, "internal")) as server:
        assert call("classify", files[0], "--url", server.url) == 1
        assert "not now" in mistake(capsys)
    with scripted(refusal(429, retry_after="999")) as server:
        assert call("classify", files[0], "--url", server.url) == 1
        assert "not now" in mistake(capsys)
    assert call("classify", files[0], "--url", server.url) == 1  # it is gone
    line = mistake(capsys)
    assert f"no answer from {server.url}" in line
    assert "start a service with msmlp serve" in line
    with scripted(Reply(200, "<html>hello</html>")) as server:
        assert call("classify", files[0], "--url", server.url, "--json") == 1
        assert "does not answer like an msmlp service" in mistake(capsys)


def test_ctrl_c_is_one_line_and_status_130(cat_photo: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(cat_photo)
    with scripted(SILENT) as service:
        command = [*COMMAND, "classify", str(path), "--url", service.url]
        pipe = subprocess.PIPE
        running = subprocess.Popen(command, env=environment(), stdout=pipe, stderr=pipe, text=True)
        wait_until(lambda: service.asked)
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=PATIENCE_SECONDS) == ("", "msmlp: interrupted\n")
    assert running.returncode == 130


def test_without_httpx_one_line_names_the_extra(cat_photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(cat_photo)
    program = (
        "import sys; sys.modules['httpx'] = None; sys.argv = ['msmlp', 'classify', 'cat.jpg', '--url', 'http://[::1]:1'];"
        "from msmlp.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith('msmlp: msmlp.Client needs the package httpx: pip install "msmlp[client]"')
