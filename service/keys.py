"""Keys of clients: from files that may change, compared in constant time, each with limits of its own.

Nothing here keeps a key, only its SHA-256 digest, and nothing shows one: no message, no log line, no `repr`.
"""

import hmac
import logging
import math
import re
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import takewhile
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from msmlp.model.errors import MsmlpError, OptionError
from msmlp.service.errors import RateLimitedError, UnauthorizedError
from msmlp.service.settings import Settings

log = logging.getLogger("msmlp.keys")

SHORTEST, LONGEST = 16, 1024
"""Characters of a key: fewer could be guessed."""
MOST_KEYS = 1000
"""Of a file. Every request is compared with each of its keys."""
LEAST = 0.0001
"""The smallest limit: about nine requests a day."""
LOOK_SECONDS = 0.5
"""Between two looks at the files; a change is taken once two of them in a row saw it, as it is written in full then."""

_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750's, which every client can send
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EXPECTED = "expected KEY [name=NAME] [requests=NUMBER] [pixels=NUMBER]"


@dataclass(frozen=True)
class Key:
    """A key: the name for the log, and the most requests and pixels a second. `row` is where its limits are counted."""

    digest: bytes = field(repr=False)
    name: str = ""
    requests: float = math.inf
    pixels: float = math.inf
    row: int = 0


class _Counts:
    """Per row, until when a key's requests and pixels so far have used its limits up, in monotonic seconds.

    In memory that all front ends share, without locks: two requests at the same instant may be counted as one.
    """

    def __init__(self) -> None:
        self._until: Any = get_context("spawn").RawArray("d", 2 * MOST_KEYS)

    def clear(self, row: int) -> None:
        self._until[2 * row] = self._until[2 * row + 1] = 0.0

    def enter(self, key: Key, now: float) -> float:
        """Count a request → 0, or the seconds until there can be one, which is not counted then.

        A second's worth may come at once, or one request where that is less. Pixels are known later: as long as any are
        left a request comes in, and when it takes more, the next ones wait.
        """
        place = 2 * key.row
        each, used = 1 / key.requests, max(0.0, self._until[place] - now)
        wait: float = max(used + each - max(1.0, each), self._until[place + 1] - now - 1.0)
        if wait > 1e-9:  # what rounding leaves
            return wait
        self._until[place] = now + used + each
        return 0.0

    def spend(self, key: Key, pixels: int, now: float) -> None:
        place = 2 * key.row + 1
        self._until[place] = max(now, self._until[place]) + pixels / key.pixels


class KeyFile:
    """The keys of one file, which `option` names; OptionError if it cannot be read."""

    def __init__(self, option: str, path: Path) -> None:
        self._option, self._path, self._counts = option, path, _Counts()
        self._seen = self._taken = _signature(path)
        self._wrong, self.keys = "", tuple[Key, ...]()
        self.keys = self._read()

    def check(self, authorization: bytes) -> Key | UnauthorizedError:
        """The key in an Authorization header, with nothing counted."""
        return self._find(authorization) or UnauthorizedError("no valid key; expected authorization: Bearer KEY")

    def enter(self, authorization: bytes) -> Key | MsmlpError:
        """The key in an Authorization header, with one more request counted, or why it is not let in."""
        key = self.check(authorization)
        if not isinstance(key, Key) or key.requests == key.pixels == math.inf:
            return key
        if not (wait := self._counts.enter(key, time.monotonic())):
            return key
        limits = {"requests": key.requests, "pixels": key.pixels}
        most = " and ".join(f"{limit:.12g} {what}" for what, limit in limits.items() if limit < math.inf)
        return RateLimitedError(f"this key may have {most} a second", max(1, math.ceil(wait)))

    def spend(self, key: Key, pixels: int) -> None:
        """Count the `pixels` of the pictures of a request that came in with `key`."""
        if key.pixels < math.inf:
            self._counts.spend(key, pixels, time.monotonic())

    def look(self) -> bool:
        """Look at the file → whether there are new keys. A file that cannot be read leaves the old ones valid."""
        seen, self._seen = self._seen, _signature(self._path)
        if self._seen == self._taken or self._seen != seen:
            return False
        try:
            self.keys = self._read()
        except OptionError as error:
            if str(error) != self._wrong:
                log.error("%s; the keys that were read before stay valid", error)
            self._wrong = str(error)
            return False
        self._taken, self._wrong = self._seen, ""
        log.info("%s was read again; keys that are valid now: %d", self._option, len(self.keys))
        return True

    def _find(self, authorization: bytes) -> Key | None:
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or len(token) > LONGEST:
            return None
        digest, found = sha256(token.strip()).digest(), None
        for key in self.keys:  # all of them: the time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _read(self) -> tuple[Key, ...]:
        """The keys in the file, on the rows that they had before."""
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise ValueError("it is not a file")
            return self._placed(_parse(self._path.read_text("utf-8-sig")))
        except UnicodeDecodeError:
            wrong = "it is not UTF-8 text"
        except (OSError, ValueError) as error:
            wrong = str(error.strerror if isinstance(error, OSError) else error)
        raise OptionError(self._option, f"{self._path}: {wrong}")

    def _placed(self, keys: list[Key]) -> tuple[Key, ...]:
        rows = {key.digest: key.row for key in self.keys}
        kept = {rows[key.digest] for key in keys if key.digest in rows}
        free = (row for row in range(MOST_KEYS) if row not in kept)
        for key in keys:
            if key.digest not in rows:
                rows[key.digest] = next(free)
                self._counts.clear(rows[key.digest])
        return tuple(replace(key, row=rows[key.digest]) for key in keys)


class NewKeys(NamedTuple):
    """To front ends: the keys that are valid from now on."""

    api: tuple[Key, ...]
    admin: tuple[Key, ...]


class Keys:
    """Who may call: `api` has the keys of requests, None where none are asked for, `admin` those of /admin, None where
    there is no such path. OptionError for a file that cannot be read.

    The supervisor has it, and every front end a copy with the same counts; it crosses only while a process is started.
    """

    def __init__(self, settings: Settings) -> None:
        api, admin = settings.api_keys_file, settings.admin_keys_file
        self.api = KeyFile("--api-keys-file", api) if api else None
        self.admin = KeyFile("--admin-keys-file", admin) if admin else None

    def watch(self, tell: Callable[[NewKeys], object]) -> None:
        """From now on call `tell` when keys have changed, on a thread of its own: a file system may hang."""
        files = [file for file in (self.api, self.admin) if file is not None]

        def look_on() -> None:
            while True:
                time.sleep(LOOK_SECONDS)
                changed = [file.look() for file in files]
                if any(changed):
                    with suppress(RuntimeError):  # the event loop is closed
                        tell(NewKeys(*(file.keys if file else () for file in (self.api, self.admin))))

        if files:
            threading.Thread(target=look_on, name="msmlp-keys", daemon=True).start()

    def take(self, new: NewKeys) -> None:
        for file, keys in zip((self.api, self.admin), new, strict=True):
            if file is not None:
                file.keys = keys


def _signature(path: Path) -> tuple[int | None, ...]:
    """Changes with the file."""
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _parse(text: str) -> list[Key]:
    """The keys in a file; ValueError names the line, never what is in it."""
    keys: dict[bytes, Key] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = list(takewhile(lambda word: not word.startswith("#"), line.split()))
        if not words:
            continue
        try:
            key = _key(*words)
            if key.digest in keys:
                raise ValueError("this key is already listed above")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        keys[key.digest] = key
    if len(keys) > MOST_KEYS:
        raise ValueError(f"{len(keys)} keys; expected at most {MOST_KEYS}")
    return list(keys.values())


def _key(word: str, *more: str) -> Key:
    if not SHORTEST <= len(word) <= LONGEST:
        raise ValueError(f"a key of {len(word)} characters; expected {SHORTEST} to {LONGEST}")
    if not _KEY.fullmatch(word):
        raise ValueError("a key with characters other than A-Z a-z 0-9 . _ ~ + / - and = at its end")
    given: dict[str, str] = {}
    for option in more:
        name, _, value = option.partition("=")
        if name not in ("name", "requests", "pixels") or name in given:
            raise ValueError(f"{_EXPECTED}, each once")
        given[name] = value
    if not _NAME.fullmatch(given.get("name", "none")):
        raise ValueError("name: expected 1 to 64 letters, digits, dots, underscores and hyphens")
    requests, pixels = (_limit(each, given[each]) if each in given else math.inf for each in ("requests", "pixels"))
    return Key(sha256(word.encode()).digest(), given.get("name", ""), requests, pixels)


def _limit(option: str, value: str) -> float:
    with suppress(ValueError):
        if LEAST <= (limit := float(value)) < math.inf:
            return limit
    raise ValueError(f"{option}: expected a number of at least {LEAST}")
