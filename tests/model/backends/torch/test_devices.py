import os
import subprocess
import sys

import pytest

from msmlp.model.backends.torch.devices import threads_for

SCRIPT = """
import torch
from msmlp.model.backends.torch.devices import set_threads
torch.set_num_threads(4)
set_threads()
set_threads()
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 2), (16, 15)])
def test_one_core_is_left_to_the_others(cores: int, threads: int) -> None:
    assert threads_for(cores) == threads


@pytest.mark.parametrize(("asked", "threads"), [(None, "3"), ("4", "4")])
def test_who_asks_for_threads_gets_them(asked: str | None, threads: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if asked:
        environment["OMP_NUM_THREADS"] = asked
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == threads
