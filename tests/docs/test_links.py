"""Every page: its links, and the files and modules it names, exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(page for folder in ("docs", "weights", "benchmarks", "tests") for page in (ROOT / folder).rglob("*.md")),
]
SUFFIXES = "py|md|sh|json|ya?ml|txt|toml|jpg|proto"
FOLDERS = "model|service|msmlp|docs|docker|tests|scripts|benchmarks|weights|examples"


def without_code(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_file_and_module_named_exists(page: Path) -> None:
    text = page.read_text()
    files = set(
        re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\.(?:py|md|sh|json|ya?ml|txt|toml|jpg|proto))\b", text)
    )
    missing = {name for name in files if not (ROOT / name).exists() and not name.startswith("weights/mine/")}
    assert not missing
    for module in re.findall(r"python3? -m ((?:benchmarks|scripts)[\w.]*\w)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_pages_are_found() -> None:
    assert {"README.md", "docs/http.md", "weights/README.md"} <= {str(page.relative_to(ROOT)) for page in PAGES}
