"""The documentation in a real browser: light and dark, on a phone, searched, from a server and from a disk.

Screenshots are kept in .sandbox/site-screenshots.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from matplotlib.image import imread

from tests.fixtures.browser import CHROMIUMS_OWN, SITE, Site, browse, console, served

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / ".sandbox/site-screenshots"
PHONE_PX = 360
# Long lines of code, wide tables, deep lists, the picture, a page that was made, and one that shows a file.
PAGES = (
    *("index", "quickstart", "architecture", "planning", "nvidia", "sandboxes", "settings", "cli", "verification"),
    *("ansible", "runbooks/index", "roles/llama_server", "files/inventory/hosts.py"),
)
GROUND = {"light": (255, 255, 255), "dark": (30, 39, 41)}
# A frame as narrow as a phone; the page in it has a phone's style, and says how wide it became.
PROBE = f"""<!doctype html><link rel=icon href=data:,><body style="margin:0">
<iframe src="/PAGE" style="border:0;width:{PHONE_PX}px;height:6000px" onload="
    const root = contentDocument.documentElement;
    document.body.dataset.found = [root.scrollWidth, root.clientWidth].join();
"></iframe>"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    program = Path(sys.executable).with_name("mkdocs")
    subprocess.run([program, "build", "--strict", "--site-dir", folder], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def site(built: Path) -> Iterator[Site]:
    pages = {f"/{path.relative_to(built)}": path.read_bytes() for path in built.rglob("*") if path.is_file()}
    pages |= {f"/probe/{page}.html": PROBE.replace("PAGE", f"{page}.html").encode() for page in PAGES}
    with served(pages) as site:
        yield site


@pytest.mark.parametrize(("page", "scheme"), [(page, "light") for page in PAGES] + [("architecture", "dark")])
def test_a_page_has_the_readers_colours_and_asks_nobody_else(
    chromium: str, site: Site, tmp_path: Path, page: str, scheme: str
) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = SCREENSHOTS / f"{page.replace('/', '-')}-{scheme}.png"
    picture.unlink(missing_ok=True)
    site.asked.clear()
    wish = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    run = browse(
        chromium, site, tmp_path, f"/{page}.html", wish, "--window-size=1300,1800", f"--screenshot={picture}"
    )
    pixels = (imread(picture)[:, :, :3] * 255).round().astype(int)
    # Below the head, at the edge.
    assert tuple(pixels[130, 2].tolist()) == GROUND[scheme]
    assert console(run) == []
    others = [each for each in site.asked if urlsplit(each).netloc != urlsplit(SITE).netloc]
    assert [each for each in others if not CHROMIUMS_OWN.fullmatch(each)] == []
    assert f"{SITE}/{page}.html" in site.asked


@pytest.mark.parametrize("page", PAGES)
def test_on_a_phone_nothing_is_wider_than_the_page(chromium: str, site: Site, tmp_path: Path, page: str) -> None:
    run = browse(chromium, site, tmp_path, f"/probe/{page}.html", "--dump-dom")
    found = re.search(r'data-found="(\d+),(\d+)"', run.stdout)
    assert found, run.stdout
    assert found.groups() == (str(PHONE_PX),) * 2


@pytest.mark.parametrize("where", ["server", "disk"])
def test_search_finds_a_runbook(chromium: str, site: Site, built: Path, tmp_path: Path, where: str) -> None:
    """Without a network, and from a disk without a server, where browsers start no workers."""
    start = "/index.html" if where == "server" else f"file://{built}/index.html"
    run = browse(chromium, site, tmp_path, f"{start}?q=MoehostXid", "--virtual-time-budget=20000", "--dump-dom")
    assert console(run) == []
    results = run.stdout.partition('class="md-search-result__list"')[2]
    assert re.search(r'href="[^"]*runbooks/MoehostXid.html', results)
