import socket

from msmlp.service.http.server import listen


def test_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    """Else every answer on a connection that is kept would be 40 ms late, its body sent after its headers."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
