"""The documentation as a site: built without a warning, at rest in itself, and every page in its place.

It is built from a copy of the working tree's pages, so that pages and links that are wrong can be tried.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PARTS = (
    *("docs", "roles", "inventory", "examples", "benchmarks", "scripts"),
    *("README.md", "CONTRIBUTING.md", "LICENSE", "mkdocs.yml"),
)
# What makes a browser fetch something without being told to: elements, and the attribute with the address.
FETCHED = {
    **dict.fromkeys(("script", "img", "iframe", "embed", "source", "video", "audio", "track", "input"), "src"),
    "object": "data", "image": "href", "use": "href", "link": "href", "form": "action",
}  # fmt: skip


def build(project: Path) -> subprocess.CompletedProcess[str]:
    """`make docs` in a copy of the project."""
    program = Path(sys.executable).with_name("mkdocs")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    # Not --quiet: with it, --strict counts no warnings.
    words = [program, "build", "--strict"]
    return subprocess.run(words, cwd=project, capture_output=True, text=True, env=environment)


def copied(folder: Path) -> Path:
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with its site built."""
    folder = copied(tmp_path_factory.mktemp("project"))
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def site(project: Path) -> Path:
    return project / "site"


class Addresses(HTMLParser):
    """The addresses in a page: what a browser fetches by itself, what a reader may follow, and what can be led to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value for key, value in attrs if value is not None}
        if address := found.get(FETCHED.get(tag, "")):
            self.fetched.append(address)
        self.fetched += [each.split()[0] for each in found.get("srcset", "").split(",") if each]
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.names |= {found[key] for key in ("id", "name") if key in found}


def pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert len(found) > 60
    return found


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    """No page, style sheet or picture makes a browser ask another server: not for a font, a script or a picture."""
    for path in pages(site):
        assert [each for each in Addresses(path).fetched if urlsplit(each).netloc] == [], path
    for path in [*site.rglob("*.css"), *site.rglob("*.svg"), *site.rglob("*.html")]:
        text = path.read_text()
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", text) == [], path


def test_no_page_wakes_a_script_that_would_fetch_from_elsewhere(site: Path) -> None:
    """The theme's script knows addresses of others; it goes there for these alone, and nothing of it is in a page."""
    scripts = "".join(path.read_text() for path in site.glob("assets/javascripts/bundle*.js"))
    known = [urlsplit(each) for each in re.findall(r"[\"'`](https?://[^\"'`\s]+)", scripts)]
    # Of the last one the name is in the page: it is a forge's of one's own.
    assert {each.netloc for each in known} == {"unpkg.com", "api.github.com", "${e}"}
    assert {each.path for each in known if each.netloc == "unpkg.com"} == {
        "/mermaid@11/dist/mermaid.min.js",
        "/resize-observer-polyfill",
    }
    for path in pages(site):
        text = path.read_text()
        # Diagrams, and figures of a repository on a forge. Browsers have had a ResizeObserver since 2020.
        assert not re.search(r"class=\"mermaid|data-md-component=\"source\"", text), path


def test_every_link_leads_somewhere(site: Path) -> None:
    """Files are there, and so are the places in them; links that leave the site are to the web."""
    there = {path: Addresses(path) for path in pages(site)}
    for path, found in there.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or path.name == "404.html":
                assert parts.scheme in ("http", "https", "") and parts.netloc != "github.com", link
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path}: {link}"
            if parts.fragment and target in there:
                assert unquote(parts.fragment) in there[target].names, f"{path}: {link}"


def test_the_forge_finds_every_file_as_well(project: Path) -> None:
    """The same links are good where pages are read in the repository."""
    for path in [*project.rglob("docs/**/*.md"), *project.glob("roles/*/README.md"), *project.glob("*.md")]:
        for link in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.relative_to(project)}: {link}"


def test_pages_that_lie_elsewhere_are_there(site: Path) -> None:
    for role in ROOT.glob("roles/*/README.md"):
        assert (site / f"roles/{role.parent.name}.html").is_file()
    assert "<h1" in (site / "index.html").read_text()
    assert "gpu_nodes" in (site / "files/inventory/hosts.py.html").read_text()
    # A link that is called by its file on a forge is called by the page's title here.
    assert ">Is the node well?</a>" in (site / "nvidia.html").read_text()


def test_lists_and_tables_are_none_that_a_forge_alone_understands(site: Path) -> None:
    """Python's Markdown wants a blank line before a list; without it a reader sees dashes in a paragraph."""
    for path in pages(site):
        for paragraph in re.findall(r"<p>(.*?)</p>", path.read_text(), re.DOTALL):
            assert not re.search(r"^(- |\d+\. |\| )", paragraph, re.MULTILINE), f"{path}: {paragraph}"


def test_it_can_be_searched_without_a_server(site: Path) -> None:
    index = (site / "search/search_index.js").read_text()
    assert index.startswith("var __index = {")
    assert "runbooks/MoehostXid.html" in index
    assert 'src="assets/iframe-worker.js"' in (site / "index.html").read_text()


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("docs/stray.md", "# Stray\n", "stray.md"),
        ("docs/doctor.md", "# Doctor\n\n[gone](nowhere.md)\n", "nowhere.md"),
        ("docs/doctor.md", "# Doctor\n\n[gone](../roles/none/README.md)\n", "roles/none/README.md"),
        ("docs/doctor.md", "# Doctor\n\n[gone](settings.md#nowhere)\n", "#nowhere"),
        ("roles/base/README.md", "# base\n\n[gone](../../docs/nowhere.md)\n", "nowhere.md"),
        ("roles/fresh/README.md", "# fresh\n", "roles/fresh.md"),
    ],
    ids=["not in nav", "no page", "no role", "no place", "from a role", "a role that is not in nav"],
)
def test_what_is_wrong_is_an_error(tmp_path: Path, path: str, text: str, said: str) -> None:
    project = copied(tmp_path)
    (project / path).parent.mkdir(exist_ok=True)
    (project / path).write_text(text)
    done = build(project)
    assert done.returncode != 0
    assert said in done.stderr
