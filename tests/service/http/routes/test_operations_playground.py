"""The playground's files and those of /docs as they are served; tests/system uses both pages in a browser."""

import re
import socket
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

UI = Path(str(files("msmlp.service"))) / "ui"
TYPES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "app.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "cat.jpg": "image/jpeg",
}


class Page(HTMLParser):
    """What a page refers to, and what a strict policy forbids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.inline: list[str] = []
        self._in: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag
        for name, value in attrs:
            if name in ("src", "href"):
                self.references.append(value or "")
            if name == "style" or name.startswith("on"):
                self.inline.append(name)

    def handle_data(self, data: str) -> None:
        if self._in in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.fixture
def page(client: httpx.Client) -> Page:
    return Page(client.get("/").text)


def test_the_page_and_everything_it_refers_to_is_there(client: httpx.Client, page: Page) -> None:
    assert {"ui/app.js", "ui/style.css", "ui/icon.svg"} <= set(page.references)
    for reference in page.references:
        assert not re.match(r"\w+:|//", reference), "a reference leaves this server"
        assert client.get(f"/{reference}").status_code == 200, reference


def test_the_documentation_and_everything_it_refers_to_comes_from_here(client: httpx.Client) -> None:
    answer = client.get("/docs")
    page = Page(answer.text)
    assert {"ui/docs.js", "ui/swagger-ui-bundle.js", "ui/swagger-ui.css", "openapi.json"} <= set(page.references)
    assert page.inline == []
    assert answer.headers["Content-Security-Policy"] == client.get("/").headers["Content-Security-Policy"]
    for reference in page.references:
        assert not re.match(r"\w+:|//", reference), "a reference leaves this server"
        assert client.get(f"/{reference}").status_code == 200, reference
    urls = re.findall(r"url\(['\"]?(\w+:)", client.get("/ui/swagger-ui.css").text)
    assert set(urls) == {"data:"}
    # Older ones cannot show an OpenAPI 3.1 document.
    [version] = re.findall(r'PACKAGE_VERSION:"(\d+)\.', client.get("/ui/swagger-ui-bundle.js").text)
    assert int(version) >= 5
    assert client.get("/openapi.json").json()["openapi"].startswith("3.1")


def test_every_module_that_a_module_imports_is_there(client: httpx.Client) -> None:
    modules, seen = ["app.js"], set()
    while modules:
        name = modules.pop()
        seen.add(name)
        answer = client.get(f"/ui/{name}")
        assert answer.status_code == 200, name
        modules += set(re.findall(r'from "\./([\w.]+)"', answer.text)) - seen
    assert seen == {path.name for path in UI.glob("*.js")} - {"docs.js"}


def test_the_policy_forbids_what_comes_from_elsewhere_and_the_page_has_nothing_inline(
    client: httpx.Client, page: Page
) -> None:
    directives = client.get("/").headers["Content-Security-Policy"].split("; ")
    assert "default-src 'self'" in directives
    assert not any("unsafe" in directive or "http" in directive or "*" in directive for directive in directives)
    assert page.inline == []


def test_server_data_is_only_ever_text() -> None:
    for path in UI.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text()), path


@pytest.mark.parametrize("name", TYPES)
def test_content_types_hold_and_are_not_guessed_over(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/ui/{name}")
    assert answer.headers["Content-Type"].split(";")[0].replace("application/java", "text/java") == TYPES[name]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.content == (UI / name).read_bytes()


@pytest.mark.parametrize("path", ["/", "/ui/app.js", "/ui/cat.jpg"])
def test_a_known_file_is_not_sent_again(client: httpx.Client, path: str) -> None:
    first = client.get(path)
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert client.get(path, headers={"If-None-Match": '"another"'}).content == first.content


@pytest.mark.parametrize("path", ["/", "/ui/style.css"])
def test_head_is_get_without_the_body(client: httpx.Client, path: str) -> None:
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Type", "Content-Length", "ETag", "Content-Security-Policy"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.parametrize(
    "path",
    [
        "/ui",
        "/ui/",
        "/ui/nothing.js",
        "/ui/..",
        "/ui/.",
        "/ui/../..",
        "/ui/../app.py",
        "/ui/../../pyproject.toml",
        "/ui/%2e%2e/app.py",
        "/ui/..%2fapp.py",
        "/ui/%2e%2e%2f%2e%2e%2fpyproject.toml",
        "/ui/..%5capp.py",
        "/ui//etc/passwd",
        "/ui/%2fetc%2fpasswd",
        "/ui/app.js%00",
        "/ui/" + "a" * 300,
    ],
)
def test_nothing_else_can_be_had(client: httpx.Client, path: str) -> None:
    """Sent as it stands: clients tidy `..` away before they ask."""
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.split()[1] == b"404"
    assert b"application/problem+json" in head
    assert b'"code":"not_found"' in body


@pytest.mark.parametrize("path", ["/", "/ui/app.js"])
def test_it_can_only_be_read(client: httpx.Client, path: str) -> None:
    answer = client.post(path, content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


def test_it_is_no_part_of_the_api(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/classify" in paths
    assert not [path for path in paths if path == "/" or path.startswith("/ui")]


def test_its_files_are_one_route_in_the_metrics_whatever_is_asked_for(client: httpx.Client) -> None:
    for path in ("/ui/app.js", "/ui/nothing", "/ui/a/b/c"):
        client.get(path)
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    routes = {sample.labels["route"] for sample in families["msmlp_requests"].samples}
    assert {route for route in routes if route.startswith("/ui")} == {"/ui"}


def test_the_sample_is_the_readmes_picture() -> None:
    root = Path(__file__).resolve().parents[4]
    assert (UI / "cat.jpg").read_bytes() == (root / "examples" / "cat.jpg").read_bytes()
