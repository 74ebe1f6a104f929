"""Files of keys, which keys they let in, and limits; the times here are made up."""

import logging
import math
import os
import pickle
import time
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from msmlp.model.errors import OptionError
from msmlp.service import keys
from msmlp.service.errors import RateLimitedError, UnauthorizedError
from msmlp.service.keys import MOST_KEYS, Key, KeyFile, Keys, NewKeys
from msmlp.service.settings import Settings

SECRET, OTHER, THIRD = "a-secret-of-20-chars", "another+secret/of~25.ch==", "the-third-secret-here"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """One number, what `time.monotonic` says to the module."""
    now = [1000.0]
    # Not the function itself: event loops of other tests' servers would sleep until the hour that it names.
    monkeypatch.setattr(keys, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    return now


def key_file(path: Path, text: str | None = None) -> KeyFile:
    if text is not None:
        path.write_text(text)
    return KeyFile("--api-keys-file", path)


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def entered(found: KeyFile, key: str) -> Key:
    answer = found.enter(bearer(key))
    assert isinstance(answer, Key), answer
    return answer


def change(path: Path, text: str) -> None:
    """As a tool does that replaces files."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def look_twice(found: KeyFile) -> list[bool]:
    return [found.look(), found.look()]


def test_a_line_is_a_key_and_what_is_known_of_it(file: Path) -> None:
    text = f"# of the shop\n\n{SECRET}\r\n\t{OTHER}  name=shop requests=0.5   pixels=2e7 # since May\n#{THIRD}\n"
    found = key_file(file, "\ufeff" + text)
    assert [(key.name, key.requests, key.pixels) for key in found.keys] == [
        ("", math.inf, math.inf),
        ("shop", 0.5, 2e7),
    ]
    assert entered(found, SECRET).digest == sha256(SECRET.encode()).digest()
    assert entered(found, OTHER).name == "shop"


@pytest.mark.parametrize(
    "header",
    [
        *("", "Bearer", "Bearer ", SECRET, f"Basic {SECRET}", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}"),
        *(f"Bearer {SECRET} {SECRET}", f"Bearer {SECRET.upper()}", f"Bearer {THIRD}", f"Bearer \xff{SECRET}"),
        *(f"Bearer {sha256(SECRET.encode()).hexdigest()}", "Bearer " + 60_000 * "x"),
    ],
)
def test_anything_else_is_no_key(file: Path, header: str) -> None:
    found = key_file(file, f"{SECRET}\n#{THIRD}\n").enter(header.encode("latin-1"))
    assert isinstance(found, UnauthorizedError)
    assert str(found) == "no valid key; expected authorization: Bearer KEY"


@pytest.mark.parametrize("header", [f"bearer {SECRET}", f"BEARER {SECRET}", f"Bearer   {SECRET} "])
def test_the_scheme_has_no_case_and_blanks_do_no_harm(file: Path, header: str) -> None:
    assert isinstance(key_file(file, SECRET).enter(header.encode()), Key)


def test_a_file_without_keys_lets_nobody_in(file: Path) -> None:
    found = key_file(file, "# nobody yet\n")
    assert isinstance(found.enter(bearer(SECRET)), UnauthorizedError)
    assert isinstance(found.enter(b"Bearer "), UnauthorizedError)


def test_the_key_is_compared_with_all_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, compared = key_file(file, f"{SECRET}\n{OTHER}\n{THIRD}\n"), list[tuple[bytes, bytes]]()
    real = keys.hmac.compare_digest

    def compare(one: bytes, two: bytes) -> bool:
        compared.append((one, two))
        return real(one, two)

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    for given in (SECRET, THIRD, "no-such-key-at-all"):
        found.enter(bearer(given))
        assert [one for one, _ in compared] == [key.digest for key in found.keys], given
        assert {two for _, two in compared} == {sha256(given.encode()).digest()}
        compared.clear()


MISTAKES = {
    "fifteen-chars-x": "a key of 15 characters; expected 16 to 1024",
    "x" * 1025: "a key of 1025 characters; expected 16 to 1024",
    "a-key-with-umlaut-\u00e4": "a key with characters other than A-Z a-z 0-9 . _ ~ + / - and = at its end",
    f"{THIRD} {OTHER}": "expected KEY [name=NAME] [requests=NUMBER] [pixels=NUMBER], each once",
    f"{THIRD} colour=red": "expected KEY [name=NAME] [requests=NUMBER] [pixels=NUMBER], each once",
    f"{THIRD} pixels=1 pixels=2": "expected KEY [name=NAME] [requests=NUMBER] [pixels=NUMBER], each once",
    f"{THIRD} name=": "name: expected 1 to 64 letters, digits, dots, underscores and hyphens",
    f"{THIRD} name=<shop>": "name: expected 1 to 64 letters, digits, dots, underscores and hyphens",
    **{
        f"{THIRD} requests={wrong}": "requests: expected a number of at least 0.0001"
        for wrong in ("0", "-1", "5e-324", "inf", "nan", "x")
    },
    f"{THIRD} pixels=": "pixels: expected a number of at least 0.0001",
    SECRET: "this key is already listed above",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_named_by_its_line_and_shows_no_key(file: Path, line: str) -> None:
    with pytest.raises(OptionError) as raised:
        key_file(file, f"{SECRET}\n# one\n{line}\n")
    assert str(raised.value) == f"--api-keys-file: {file}: line 3: {MISTAKES[line]}"
    assert_nothing_of(line, "".join(traceback.format_exception(raised.value)))


def assert_nothing_of(line: str, text: str) -> None:
    for word in line.split():
        assert len(word) < 15 or word not in text


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe" + SECRET.encode("utf-16"))
    many = tmp_path / "many"
    many.write_text("".join(f"{SECRET}-{number}\n" for number in range(MOST_KEYS + 1)))
    for path, wrong in {
        pipe: "it is not a file",
        tmp_path: "it is not a file",
        tmp_path / "nowhere": "No such file or directory",
        binary: "it is not UTF-8 text",
        many: "1001 keys; expected at most 1000",
    }.items():
        with pytest.raises(OptionError) as raised:
            key_file(path)
        assert str(raised.value).endswith(wrong)
        assert str(path) in str(raised.value)


def test_a_changed_file_is_taken_once_it_has_stayed_as_it_is(file: Path) -> None:
    found = key_file(file, SECRET)
    assert look_twice(found) == [False, False]
    file.write_text("")  # a tool that writes in place has it empty for a moment
    assert not found.look()
    file.write_text(OTHER)
    assert not found.look(), "it has changed since"
    assert isinstance(found.enter(bearer(SECRET)), Key)
    assert found.look()
    assert isinstance(found.enter(bearer(SECRET)), UnauthorizedError)
    assert isinstance(found.enter(bearer(OTHER)), Key)
    assert look_twice(found) == [False, False]


@pytest.mark.parametrize("spoil", [lambda file: change(file, "short"), Path.unlink], ids=["bad", "gone"])
def test_a_bad_new_file_keeps_the_old_keys_and_is_logged_once(
    file: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    found = key_file(file, SECRET)
    spoil(file)
    with caplog.at_level(logging.DEBUG):
        for _ in range(5):
            assert not found.look()
    [logged] = caplog.messages
    assert logged.startswith("--api-keys-file: ")
    assert logged.endswith("; the keys that were read before stay valid")
    assert isinstance(found.enter(bearer(SECRET)), Key)
    change(file, OTHER)
    assert look_twice(found) == [False, True]
    assert isinstance(found.enter(bearer(OTHER)), Key)


def test_a_second_of_requests_may_come_at_once_and_then_one_after_the_other(file: Path, clock: list[float]) -> None:
    found = key_file(file, f"{SECRET} requests=4\n{OTHER}")
    for _ in range(4):
        entered(found, SECRET)
    refused = found.enter(bearer(SECRET))
    assert isinstance(refused, RateLimitedError)
    assert (str(refused), refused.retry_after) == ("this key may have 4 requests a second", 1)
    entered(found, OTHER)
    let_in = 0
    for _ in range(100):  # ten seconds in which far too many come
        clock[0] += 0.1
        let_in += isinstance(found.enter(bearer(SECRET)), Key)
    assert let_in == 40
    clock[0] += 1000  # no more than a second's worth is saved up
    assert sum(isinstance(found.enter(bearer(SECRET)), Key) for _ in range(10)) == 4


def test_less_than_one_request_a_second(file: Path, clock: list[float]) -> None:
    found = key_file(file, f"{SECRET} requests=0.05")
    entered(found, SECRET)
    refused = found.enter(bearer(SECRET))
    assert isinstance(refused, RateLimitedError)
    assert refused.retry_after == 20
    clock[0] += 20
    entered(found, SECRET)


def test_pixels_may_be_overdrawn_and_then_the_next_request_waits(file: Path, clock: list[float]) -> None:
    found = key_file(file, f"{SECRET} requests=1000 pixels=1e6")
    found.spend(entered(found, SECRET), 900_000)
    found.spend(entered(found, SECRET), 5_000_000)  # some were left
    refused = found.enter(bearer(SECRET))
    assert isinstance(refused, RateLimitedError)
    assert str(refused) == "this key may have 1000 requests and 1000000 pixels a second"
    assert refused.retry_after == 5  # 4.9 s
    clock[0] += 4.8
    assert isinstance(found.enter(bearer(SECRET)), RateLimitedError)
    clock[0] += 0.2
    entered(found, SECRET)


def test_what_is_refused_does_not_count(file: Path, clock: list[float]) -> None:
    found = key_file(file, f"{SECRET} requests=1")
    entered(found, SECRET)
    for _ in range(50):
        assert isinstance(found.enter(bearer(SECRET)), RateLimitedError)
    clock[0] += 1
    entered(found, SECRET)


def test_limits_stay_with_their_keys_when_the_file_changes(file: Path, clock: list[float]) -> None:
    found = key_file(file, f"{SECRET} requests=0.01\n{OTHER} requests=0.01")
    entered(found, SECRET)
    entered(found, OTHER)
    change(file, f"{THIRD} requests=0.01\n{OTHER} requests=0.01 name=still")
    assert look_twice(found) == [False, True]
    assert isinstance(found.enter(bearer(OTHER)), RateLimitedError)
    entered(found, THIRD)  # on the row of the one that is gone
    assert isinstance(found.enter(bearer(THIRD)), RateLimitedError)


def test_front_ends_take_what_the_supervisor_read(file: Path, tmp_path: Path) -> None:
    file.write_text(SECRET)
    mine, theirs = Keys(Settings(api_keys_file=file)), Keys(Settings(api_keys_file=file))
    change(file, OTHER)
    assert mine.api is not None
    assert theirs.api is not None
    assert look_twice(mine.api) == [False, True]
    theirs.take(pickle.loads(pickle.dumps(NewKeys(mine.api.keys, ()))))
    assert isinstance(theirs.api.enter(bearer(OTHER)), Key)
    assert isinstance(theirs.api.enter(bearer(SECRET)), UnauthorizedError)
    assert theirs.admin is None


def test_nothing_shows_a_key_or_its_digest(file: Path) -> None:
    settings = Settings(api_keys_file=file, admin_keys_file=file)
    file.write_text(f"{SECRET} name=shop requests=1")
    found = Keys(settings)
    assert found.api is not None
    key = entered(found.api, SECRET)
    refused = found.api.enter(bearer(SECRET)), found.api.enter(bearer(OTHER))
    for shown in (found, vars(found), found.api, vars(found.api), key, NewKeys(found.api.keys, ()), settings, *refused):
        for text in (repr(shown), str(shown)):
            assert_hidden(text)


def assert_hidden(text: str) -> None:
    for secret in (SECRET, OTHER):
        digest = sha256(secret.encode())
        for form in (secret, digest.hexdigest(), repr(digest.digest())[2:-1]):
            assert form not in text
