import subprocess
import sys

SCRIPT = """
import gc
from msmlp.service.engine.transport import freeze_gc
kept = [[] for _ in range(1000)]
freeze_gc()
count = gc.get_freeze_count()
assert count > 1000
assert not any(each is kept[0] for each in gc.get_objects())
kept += [[] for _ in range(1000)]
freeze_gc()
assert gc.get_freeze_count() == count, "what came since is looked through as ever"
"""


def test_what_is_there_is_left_alone_and_what_comes_is_not() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)
