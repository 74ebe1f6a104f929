"""The certificate for TLS: checked at the start, and read again when its files are renewed."""

import logging
import ssl
import threading
import time
from pathlib import Path
from typing import NoReturn, Self

from msmlp.model.errors import OptionError

log = logging.getLogger("msmlp.tls")

LOOK_SECONDS = 60.0
"""Between two looks at the files."""

CHAIN, KEY = "--ssl-certfile", "--ssl-keyfile"


class Certificate:
    """A chain and its key, in PEM files. Renewed files that do not fit are logged, and the old pair stays in use."""

    def __init__(self, chain: Path, key: Path) -> None:
        """OptionError: the files cannot be read, or do not belong together."""
        self._chain, self._key = chain, key
        self._stamp = self._now_stamp()
        self._context, self._pair = self._load()

    @classmethod
    def of(cls, chain: Path | None, key: Path | None) -> Self | None:
        """None without files; OptionError if one of them is missing."""
        if chain is None and key is None:
            return None
        if chain is None or key is None:
            given, missing = (CHAIN, KEY) if key is None else (KEY, CHAIN)
            raise OptionError(missing, f"required together with {given}")
        return cls(chain, key)

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._context

    @property
    def pair(self) -> tuple[bytes, bytes]:
        """The key and the chain, as gRPC takes them."""
        return self._pair

    def watch(self) -> Self:
        """From now on look at the files, on a thread of its own: a file system may hang."""

        def look_on() -> None:
            while True:
                time.sleep(LOOK_SECONDS)
                self.look()

        threading.Thread(target=look_on, name="msmlp-certificate", daemon=True).start()
        return self

    def look(self) -> None:
        """Read the files again if they have changed."""
        stamp = self._now_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._context, self._pair = self._load()
        except OptionError as error:
            log.error("the renewed certificate is not used, the old one stays in use: %s", error)
        else:
            log.info("%s and %s were renewed and are in use", self._chain, self._key)

    def _now_stamp(self) -> object:
        """Changes with the files, also where links are turned to others, as Kubernetes does. Taken before they are
        read: what changes meanwhile is read again."""
        try:
            return [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in (self._chain.stat(), self._key.stat())]
        except OSError as error:
            return error.errno

    def _load(self) -> tuple[ssl.SSLContext, tuple[bytes, bytes]]:
        chain, key = _read(CHAIN, self._chain), _read(KEY, self._key)
        if b"-----BEGIN CERTIFICATE-----" not in chain:
            raise OptionError(CHAIN, f"{self._chain} holds no certificate; expected PEM, the server's own first")
        if b"PRIVATE KEY-----" not in key:
            raise OptionError(KEY, f"{self._key} holds no private key; expected PEM")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._chain, self._key, password=_no_password)
        except ssl.SSLError as error:
            reason = (error.reason or "unknown").lower().replace("_", " ")
            if error.reason == "KEY_VALUES_MISMATCH":
                reason = "the key is another certificate's"
            raise OptionError(CHAIN, f"cannot use {self._chain} with {self._key}: {reason}") from None
        except OSError as error:  # removed since
            raise OptionError(CHAIN, f"cannot read {self._chain} and {self._key}: {error.strerror}") from None
        return context, (key, chain)


def _read(option: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise OptionError(option, f"cannot read {file}: {error.strerror}") from None


def _no_password() -> NoReturn:
    """Asked for where the key is encrypted; OpenSSL would ask at the terminal."""
    raise OptionError(KEY, "the key is encrypted; expected one without a password, readable by the service alone")
