"""A certificate's files: what is refused at the start, and what becomes of renewed ones."""

import os
import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from msmlp.model.errors import OptionError
from msmlp.service import certificate
from msmlp.service.certificate import Certificate
from tests.certificates import Files, issue, trusting
from tests.servers import wait_until


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return issue(tmp_path)


def presented(server: ssl.SSLContext, client: ssl.SSLContext | None = None) -> str:
    """The serial number of the certificate that a client is shown, after a handshake in memory."""
    ways = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(ways[0], ways[1], server_side=True)
    theirs = (client or trusting()).wrap_bio(ways[1], ways[0], server_hostname="127.0.0.1")
    for _ in range(2):
        for side in (theirs, ours):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    shown = theirs.getpeercert()
    assert shown is not None
    return str(shown["serialNumber"])


def test_without_files_there_is_none() -> None:
    assert Certificate.of(None, None) is None


def test_one_file_alone_is_refused_by_the_other_ones_name(files: Files) -> None:
    with pytest.raises(OptionError, match=r"^--ssl-keyfile: required together with --ssl-certfile$"):
        Certificate.of(files.chain, None)
    with pytest.raises(OptionError, match=r"^--ssl-certfile: required together with --ssl-keyfile$"):
        Certificate.of(None, files.key)


def spoilt(files: Files, how: str) -> None:
    if how == "no chain":
        files.chain.unlink()
    elif how == "no key":
        files.key.unlink()
    elif how == "exchanged":
        chain = files.chain.read_bytes()
        files.chain.write_bytes(files.key.read_bytes())
        files.key.write_bytes(chain)
    elif how == "a key as the chain's":
        files.key.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    elif how == "damaged":
        files.chain.write_bytes(files.chain.read_bytes()[:200])
    elif how == "another key":
        files.key.write_bytes(trustme.CA().issue_cert("127.0.0.1").private_key_pem.bytes())
    elif how == "encrypted":
        files.key.write_text(ENCRYPTED)


ENCRYPTED = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGjMF8GCSqGSIb3DQEFDTBSMDEGCSqGSIb3DQEFDDAkBBDf4gTEtvY75txUKnG4
5cKbAgIIADAMBggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQAAAAAAAAAAAAAAAA
AAAAAARAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==
-----END ENCRYPTED PRIVATE KEY-----
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no chain", "--ssl-certfile: cannot read .*chain.pem: No such file"),
        ("no key", "--ssl-keyfile: cannot read .*key.pem: No such file"),
        ("exchanged", "--ssl-certfile: .*chain.pem holds no certificate"),
        ("a key as the chain's", "--ssl-keyfile: .*key.pem holds no private key"),
        ("damaged", "--ssl-certfile: cannot use .*chain.pem with .*key.pem: "),
        ("another key", "--ssl-certfile: cannot use .*: the key is another certificate's"),
        ("encrypted", "--ssl-keyfile: the key is encrypted; expected one without a password"),
    ],
)
def test_files_that_do_not_serve_are_refused_and_named(files: Files, how: str, said: str) -> None:
    spoilt(files, how)
    with pytest.raises(OptionError, match=said):
        Certificate.of(*files)


def test_clients_are_shown_it_by_tls_1_2_or_later(files: Files) -> None:
    served = Certificate(*files)
    assert presented(served.context)
    assert served.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_renewed_files_are_used_once_they_are_looked_at(files: Files) -> None:
    served = Certificate(*files)
    first, pair = presented(served.context), served.pair
    issue(files.chain.parent)
    assert presented(served.context) == first, "not yet"
    assert served.pair is pair
    served.look()
    assert presented(served.context) not in ("", first)
    assert served.pair == (files.key.read_bytes(), files.chain.read_bytes())


def test_a_link_that_is_turned_is_a_renewal(tmp_path: Path) -> None:
    """Kubernetes mounts a secret as links through a folder that it exchanges."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        issue(tmp_path / name)
    data = tmp_path / "data"
    data.symlink_to("one")
    served = Certificate(data / "chain.pem", data / "key.pem")
    first = presented(served.context)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(data)
    served.look()
    assert presented(served.context) != first


@pytest.mark.parametrize("how", ["no chain", "another key", "damaged", "encrypted"])
def test_renewed_files_that_do_not_serve_leave_the_old_ones(
    files: Files, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    served = Certificate(*files)
    first = presented(served.context)
    spoilt(files, how)
    served.look()
    served.look()
    assert presented(served.context) == first
    (line,) = caplog.messages
    assert line.startswith("the renewed certificate is not used, the old one stays in use: --ssl-")
    issue(files.chain.parent)
    served.look()
    assert presented(served.context) != first


def test_the_time_of_a_file_alone_changes_nothing(files: Files) -> None:
    served = Certificate(*files)
    first = presented(served.context)
    os.utime(files.chain)
    served.look()
    assert presented(served.context) == first


def test_files_that_hang_hold_up_no_connection(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a mount whose server is gone: here in a pipe that nobody writes to."""
    monkeypatch.setattr(certificate, "LOOK_SECONDS", 0.001)
    served, pipe, ends = Certificate(*files).watch(), files.chain.with_name("pipe"), list[int]()
    first, pair = presented(served.context), served.pair

    def is_read() -> bool:
        with suppress(OSError):
            ends.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(ends)

    os.mkfifo(pipe)
    pipe.rename(files.chain)
    pipe = files.chain
    wait_until(is_read)
    assert (presented(served.context), served.pair) == (first, pair)
    os.close(ends[0])


def test_renewed_files_are_looked_at_by_itself(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "LOOK_SECONDS", 0.01)
    served = Certificate(*files).watch()
    first = presented(served.context)
    issue(files.chain.parent)
    wait_until(lambda: presented(served.context) != first)
