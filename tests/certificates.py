"""Certificates for tests, and sockets that trust any."""

import functools
import socket
import ssl
from pathlib import Path
from typing import NamedTuple

import trustme

CA = trustme.CA()
"""Of this process. The front ends that are started from it only read files."""


class Files(NamedTuple):
    """Where a certificate and its key are."""

    chain: Path
    key: Path

    @property
    def options(self) -> tuple[str, ...]:
        """Of `msmlp serve`."""
        return "--ssl-certfile", str(self.chain), "--ssl-keyfile", str(self.key)

    @property
    def settings(self) -> dict[str, Path]:
        return {"ssl_certfile": self.chain, "ssl_keyfile": self.key}


def issue(folder: Path) -> Files:
    """A new certificate for this machine; in the place of one that is there already, as renewals are."""
    certificate, files = CA.issue_cert("127.0.0.1", "localhost"), Files(folder / "chain.pem", folder / "key.pem")
    files.chain.write_bytes(b"".join(each.bytes() for each in certificate.cert_chain_pems))
    files.key.write_bytes(certificate.private_key_pem.bytes())
    return files


@functools.cache
def trusting() -> ssl.SSLContext:
    """As a client has it that knows our certificates; all share one, which takes 20 ms to make."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


def secured(connection: socket.socket) -> ssl.SSLSocket:
    """A connection to this machine, over TLS."""
    return trusting().wrap_socket(connection, server_hostname="127.0.0.1")
