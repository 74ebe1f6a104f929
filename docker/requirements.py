"""Print the requirements in pyproject.toml with the given extras, which the image installs before the source."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [requirement for name in sys.argv[1:] for requirement in project["optional-dependencies"][name]]
sys.stdout.writelines(f"{requirement}\n" for requirement in [*project["dependencies"], *extras])
