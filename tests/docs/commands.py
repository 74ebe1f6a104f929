"""The commands of a page, run as a shell would run them."""

import io
import re
import shlex
import string
from contextlib import redirect_stdout

import pytest

from msmlp.main import main


def blocks_of(page: str, language: str) -> list[str]:
    """The contents of a page's code blocks in a language, also of those in lists."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def run_commands(block: str) -> str:
    """Run assignments and msmlp commands as a shell would, but in this process, as importing torch for each takes
    seconds; returns what stood on stdout."""
    variables: dict[str, str] = {}
    out = io.StringIO()
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(string.Template(line).substitute(variables))
        name, assigns, value = words[0].partition("=")
        if assigns:
            variables[name] = value
            continue
        assert name == "msmlp"
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
            patch.setattr("sys.argv", words)
            with pytest.raises(SystemExit) as ended:
                main()
        assert ended.value.code == 0, line
    return out.getvalue()
