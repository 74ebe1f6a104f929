import io

from msmlp.bench.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_every_step_is_a_line() -> None:
    stream = io.StringIO()
    with Bar(2, stream) as progress:
        progress("this")
        progress("that")
    assert stream.getvalue() == "msmlp bench:   0 % this\nmsmlp bench:  50 % that\n"


def test_on_a_terminal_one_line_is_drawn_over_and_taken_away() -> None:
    stream = Terminal()
    with Bar(2, stream) as progress:
        progress("this")
        progress("that")
    assert "\n" not in stream.getvalue()
    assert "[############............]  50 % that" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")
