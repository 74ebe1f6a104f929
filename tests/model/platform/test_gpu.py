import stat
from pathlib import Path

import pytest

from msmlp.model.errors import DeviceError
from msmlp.model.platform.gpu import free_gpu_memory


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that says what stands in `answer`, and notes what it was asked in `asked`."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/asked"\ncat "{tmp_path}/answer"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_the_driver_says_what_is_free(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nvidia_smi / "answer").write_text("80123\n")
    assert free_gpu_memory() == 80123 * 2**20
    assert "--id=0 " in (nvidia_smi / "asked").read_text()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    free_gpu_memory()
    assert "--id=3 " in (nvidia_smi / "asked").read_text()


@pytest.mark.parametrize("answer", ["", "[N/A]\n"])
def test_a_driver_that_does_not_know_is_an_error(nvidia_smi: Path, answer: str) -> None:
    (nvidia_smi / "answer").write_text(answer)
    with pytest.raises(DeviceError, match="set --capacity"):
        free_gpu_memory()
