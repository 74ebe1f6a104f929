"""`make serve` in this clone, and the README's commands against it, as a stranger would type them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]


def console_blocks(text: str) -> list[str]:
    """The contents of the ```bash blocks."""
    return re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_call_answers_as_the_readme_shows(serve_shipped: httpx.Client) -> None:
    assert shutil.which("curl"), "the README's calls are made with curl"
    readme = (ROOT / "README.md").read_text()
    calls = [block for block in console_blocks(readme) if "curl" in block]
    assert calls
    port = str(serve_shipped.base_url.port)
    for call in calls:
        command = call.replace("localhost:8000", f"localhost:{port}")
        done = subprocess.run(["sh", "-ec", command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["results"], answer
    shown = json.loads(re.findall(r"```json\n(.*?)```", readme, flags=re.DOTALL)[0])
    first = calls[0].replace("localhost:8000", f"localhost:{port}")
    came = json.loads(subprocess.run(["sh", "-ec", first], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert shape(shown) == shape(came)
    for part in ("label", "exit", "reason", "gflops"):
        assert shown["results"][0][part] == came["results"][0][part]
    assert shown["operating_point"] == came["operating_point"]
    assert shown["model"] == came["model"]


def shape(value: object) -> object:
    """The names and kinds of a JSON document without its values."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "number" if isinstance(value, int | float) else type(value).__name__
