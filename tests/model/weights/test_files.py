"""Files of a weights folder are replaced whole, or not at all."""

import errno
from pathlib import Path

import pytest

from msmlp.model.weights.files import write_together


def test_where_there_is_no_room_for_one_of_them_all_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write_together({one: b"1", other: b"1"})
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith("other"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            write_together({one: b"2", other: b"2"})
    assert caught.value.filename == str(other)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {one: b"1", other: b"1"}
