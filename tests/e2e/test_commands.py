"""What holds for every command there is, found by walking the app: help with examples, exit statuses, completion."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main

import msmlp
from msmlp import main as command_line
from msmlp.main import app
from msmlp.model.nn.config import PRESETS
from msmlp.model.training.recipes import TEACHERS
from msmlp.service.settings import REMOVED, Settings
from tests.processes import MSMLP, Call, environment, run_msmlp

ROOT = typer.main.get_command(app)
WIDTH = 80


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that does something: ("train",), ("bench", "engine")."""
    inside = getattr(command, "commands", None)
    if not inside:
        yield path
        return
    for name, child in inside.items():
        yield from walk(child, (*path, name))


COMMANDS = {" ".join(path): path for path in walk(ROOT)}


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a mistake leaves: one line on stderr, nothing on stdout."""
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("msmlp: ")
    return line


def test_the_contracts_commands_are_there() -> None:
    assert {"train", "evaluate", "calibrate", "info", "serve", "doctor"} <= COMMANDS.keys()


# --- help --------------------------------------------------------------------------------------------------------


def examples(text: str) -> list[str]:
    """The commands after "Examples:" or "Example:", a line each, continued where one ends in a backslash."""
    blocks = re.findall(r"^ *Examples?:(.*?)(?:\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks, f"no example in:\n{text}"
    lines = "\n".join(blocks).replace("\\\n", " ").replace("Example:", "").splitlines()
    return [line.strip() for line in lines if line.strip()]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_fits_a_terminal(name: str, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*COMMANDS[name], "-h") == 0
    short = capsys.readouterr().out
    assert call(*COMMANDS[name], "--help") == 0
    printed = capsys.readouterr()
    assert short == printed.out
    assert printed.err == ""
    assert max(map(len, printed.out.splitlines())) <= WIDTH
    found = examples(printed.out)
    assert all(f"msmlp {name}" in example for example in found)
    for example in found:
        words = shlex.split(example.partition(" > ")[0])
        arguments = words[words.index("msmlp") + 1 + len(COMMANDS[name]) :]
        command = ROOT
        for word in COMMANDS[name]:
            command = command.commands[word]  # type: ignore[attr-defined]
        # Parsed, not run: an option that is gone, or a value no longer allowed, raises.
        command.make_context(name, arguments)


def test_help_says_every_option_and_no_option_says_nothing() -> None:
    for path in COMMANDS.values():
        command: Any = ROOT
        for word in path:
            command = command.commands[word]
        silent = [option.name for option in command.params if not getattr(option, "help", None)]
        assert not silent, f"{path}: {silent}"


def test_without_a_command_the_help_is_printed(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert all(path[0] in printed.out for path in COMMANDS.values())


def test_the_version_is_the_packages(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"msmlp {metadata.version('msmlp')}\n", "")
    assert msmlp.__version__ == metadata.version("msmlp")


# --- exit statuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_one_line_and_status_2(name: str, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*COMMANDS[name], "--nonsense") == 2
    line = one_line(capsys)
    assert "--nonsense" in line
    assert line.endswith(f"see msmlp {name} --help")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["train"], "Missing option '--data'"),
        (["serve", "--port"], "'--port' requires an argument"),
        (["serve", "--port", "http"], "Invalid value for '--port': expected a valid integer"),
        (["serve", "--port", "8123", "--grpc-port", "8123"], "--grpc-port: 8123 is already used by --port; "),
        (["serve", "--port", "70000"], "'--port': expected at most 65535"),
        (["serve", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["info", "weights/x"], "unexpected extra argument"),
        (["report"], "msmlp: report: expected one of card, gallery; see msmlp report --help"),
        (["bench"], "msmlp: bench: expected one of engine, http; see msmlp bench --help"),
        # Removed in 0.2.
        (["bench", "pair"], "bench pair was removed in 0.2"),
        (
            ["calibrate", "--weights", "w", "--data", "d", "--exit-policy", "gate"],
            "'gate' was removed in 0.2; expected one of max-probability, margin, entropy",
        ),
        (["calibrate", "--weights", "w", "--data", "d", "--exit-policy", "x"], "'x' is unknown; expected one of max-"),
    ],
)
def test_a_wrong_word_is_one_line_and_status_2(
    words: list[str], said: str, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    line = one_line(capsys)
    assert said in line
    assert "Value error" not in line


@pytest.fixture
def failing_info(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`failing_info(error)`: `msmlp info --preset tiny` fails with it."""
    from msmlp.model.weights import info

    def fail_with(error: BaseException) -> None:
        def fail(name: str) -> None:
            raise error

        monkeypatch.setattr(info, "preset_info", fail)

    return fail_with


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "x.json"), "unexpected OSError: [Errno 28] No space left on device"),
        (RuntimeError("two\nlines"), "unexpected RuntimeError: two lines (msmlp --traceback ... shows where)"),
        (ModuleNotFoundError("no", name="kornia"), "needs the package kornia"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_one_line_and_status_1(
    error: BaseException, said: str, failing_info: Any, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_info(error)
    assert call("info", "--preset", "tiny") == 1
    assert said in one_line(capsys)


def test_an_interrupt_is_one_line_and_status_130(
    failing_info: Any, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_info(KeyboardInterrupt())
    assert call("info", "--preset", "tiny") == 130
    assert one_line(capsys) == "msmlp: interrupted"


def test_a_fault_of_ours_can_be_traced(failing_info: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_info(RuntimeError("a fault"))
    monkeypatch.setattr("sys.argv", ["msmlp", "--traceback", "info", "--preset", "tiny"])
    with pytest.raises(RuntimeError, match="a fault"):
        command_line.main()


# --- the options of serve are the settings -----------------------------------------------------------------------


def test_serve_has_an_option_for_every_setting_and_no_other() -> None:
    serve: Any = ROOT.commands["serve"]  # type: ignore[attr-defined]
    options = {option.opts[0] for option in serve.params if not option.hidden}
    assert options == {"--" + name.replace("_", "-") for name in Settings.model_fields}


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_option_is_one_line(
    call: Call, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    option, variable = "--" + name.replace("_", "-"), f"MSMLP_{name.upper()}"
    assert call("serve", option) == 2
    assert capsys.readouterr().err == f"msmlp: {option}: {REMOVED[name]}\n"
    monkeypatch.setenv(variable, "1")
    assert call("serve") == 2
    assert capsys.readouterr().err == f"msmlp: {variable}: {REMOVED[name]}\n"


def test_serve_says_each_settings_meaning_and_default(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("serve", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f"{field.description} Default: " in said, name
    assert "Port to listen on; 0 takes a free one. Default: 8000." in said


def test_without_the_serving_packages_serve_says_what_it_needs() -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(["pydantic_settings", "fastapi", "starlette", "uvicorn"]))
sys.argv = ["msmlp", "serve", "--port", "9000"]
from msmlp.main import main
main()
"""
    python = str(Path(MSMLP).with_name("python"))
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"msmlp: this command needs the package \w+: pip install .*\n", done.stderr)


# --- completion --------------------------------------------------------------------------------------------------


def in_bash(script: str, home: Path) -> str:
    """What real bash prints, with `msmlp` on its path and a home of its own."""
    path = f"{Path(MSMLP).parent}:/usr/bin:/bin"
    done = subprocess.run(
        [shutil.which("bash") or "bash", "--norc", "-c", script],
        env=environment(PATH=path, HOME=str(home)),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def pressed_tab(script: str, *words: str) -> str:
    """Bash code that completes the last of the words, as the tab key would, and prints a line a proposal."""
    line = " ".join(shlex.quote(word) for word in words)
    return f"""{script}
COMP_WORDS=(msmlp {line}); COMP_CWORD={len(words)}
_msmlp_completion msmlp; printf '%s\\n' "${{COMPREPLY[@]}}" "--"
"""


def test_completion_installed_for_bash_completes_commands_and_values(tmp_path: Path) -> None:
    assert "bash completion installed" in in_bash("msmlp --install-completion; true", tmp_path)
    script = (tmp_path / ".bashrc").read_text()
    asked = [("evalu",), ("train", "--preset", ""), ("train", "--recipe", "q"), ("evaluate", "--split", "")]
    asked += [("serve", "--device", "c"), ("doctor", "--js")]
    printed = in_bash(script + "".join(pressed_tab("", *words) for words in asked), tmp_path)
    proposals = [part.split() for part in printed.split("--\n")[:-1]]
    assert proposals == [
        ["evaluate"],
        [*PRESETS, *TEACHERS],
        ["quick"],
        ["val", "audit", "test"],
        ["cpu", "cuda"],
        ["--json"],
    ]


def test_the_script_to_copy_is_shown(tmp_path: Path) -> None:
    shown = in_bash("msmlp --show-completion; true", tmp_path)
    assert "complete -o default -F _msmlp_completion msmlp" in shown


def test_zsh_gets_proposals_with_their_meaning() -> None:
    script = run_msmlp(_MSMLP_COMPLETE="source_zsh")
    assert script.returncode == 0
    assert "compdef _msmlp_completion msmlp" in script.stdout
    done = run_msmlp(_MSMLP_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="msmlp doc")
    assert '"doctor":"Say what this machine will use to serve' in done.stdout
