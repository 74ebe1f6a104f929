"""What ONNX Runtime would do quietly: run on the CPU where the provider asked for is not there."""

from pathlib import Path

import pytest

from msmlp.model.backends.onnx.base import BY_NAME, CPU, has_provider, open_session
from msmlp.model.errors import DeviceError


def test_a_session_runs_where_it_was_asked_to(tiny_weights: Path) -> None:
    session = open_session((tiny_weights / "stage-1.onnx").read_bytes(), CPU)
    assert session.session.get_providers() == ["CPUExecutionProvider"]
    assert not session.captures


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
@pytest.mark.filterwarnings("ignore:Specified provider")  # ONNX Runtime's own, before it takes the CPU
def test_a_provider_that_is_not_there_is_an_error(tiny_weights: Path, name: str) -> None:
    if has_provider(BY_NAME[name]):
        pytest.skip("it is there")
    with pytest.raises(DeviceError, match=f"ONNX Runtime could not load its {BY_NAME[name].name}"):
        open_session((tiny_weights / "stage-1.onnx").read_bytes(), BY_NAME[name])
