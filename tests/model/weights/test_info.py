import json
import shutil
from pathlib import Path

import pytest

from msmlp.model.errors import ConfigError, WeightsError
from msmlp.model.nn.config import PRESETS, cumulative_gflops
from msmlp.model.weights.info import preset_info, weights_info


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_exits_cost_ever_more_and_folding_never_costs(name: str) -> None:
    exits = preset_info(name)["exits"]
    assert [row["exit"] for row in exits] == list(range(1, len(PRESETS[name].stages) + 1))
    served = [row["gflops"] for row in exits]
    assert served == sorted(set(served))
    assert served == cumulative_gflops(PRESETS[name])
    # The first stage reuses nothing, so there is nothing to fold in it; every later one is cheaper folded.
    assert exits[0]["gflops"] == exits[0]["gflops_unfolded"]
    assert all(row["gflops"] < row["gflops_unfolded"] for row in exits[1:])


def test_the_papers_own_count_is_given_unfolded() -> None:
    unfolded = [row["gflops_unfolded"] for row in preset_info("paper-s")["exits"]]
    assert unfolded == pytest.approx([0.077, 0.399, 1.68], rel=0.01)


def test_an_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="huge"):
        preset_info("huge")


def test_a_weights_folder(tiny_weights: Path) -> None:
    info = weights_info(tiny_weights)
    assert json.loads(json.dumps(info)) == info
    assert info["name"] == tiny_weights.name
    assert info["classes"] == [str(digit) for digit in range(10)]
    assert info["cascade"] == preset_info("tiny")["cascade"]
    assert info["exits"] == preset_info("tiny")["exits"]
    assert {"fast", "balanced", "accurate"} <= {point["name"] for point in info["operating_points"]}
    assert info["training"]["preset"] == "tiny"
    assert [row["exit"] for row in info["results"]] == [1, 2, 3]


def test_a_damaged_weights_folder(tiny_weights: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_weights, tmp_path / "tiny"))
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
        weights_info(folder)
    with pytest.raises(WeightsError, match="nowhere"):
        weights_info(tmp_path / "nowhere")
