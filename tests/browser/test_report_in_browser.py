"""The report in a real browser, headless Chromium: light and dark, on a phone, without network and without errors.

The browser reaches everything, this computer included, through a proxy of the test, which serves the report and
refuses and records all else. Screenshots are kept in .sandbox/report-screenshots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from moehost import report
from tests.fixtures.benchmark import THRESHOLD, simulated
from tests.fixtures.browser import CHROMIUMS_OWN, SITE, Site, browse, console, served

SCREENSHOTS = Path(__file__).parents[2] / ".sandbox" / "report-screenshots"
PHONE_PX = 360
PAGES = {"light": (246, 245, 242), "dark": (16, 20, 26)}
# Measures the report in a frame as narrow as a phone; the report itself runs no scripts.
PROBE = f"""<!doctype html><link rel=icon href=data:,><body style="margin:0">
<iframe src="PAGE" style="border:0;width:{PHONE_PX}px;height:6000px" onload="
    const page = contentDocument, root = page.documentElement;
    document.body.dataset.found = [root.scrollWidth, root.clientWidth, page.querySelectorAll('svg').length].join();
"></iframe>"""
# Does everything that a report must not.
BROKEN = """<!doctype html><link rel=icon href=data:,><div style="width:900px">wide</div>
<script>console.error('broken')</script><img src="http://elsewhere.test/a.png">"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a simulated benchmark, with everything that a report can show."""
    session = simulated(3, noise=0.02)
    made = list(session.runs)
    made[9] = replace(made[9], decode_s=1.3 * made[9].decode_s)
    lost = replace(made[12], kind="failed", prompt_s=0.0, decode_s=0.0, first_token_s=0.0, reason="<b>timed</b> out")
    plan = {
        "model": {"name": "Qwen3.5-397B-A17B-IQ4_NL"},
        "argv": ["-m", "/srv/models/q.gguf", "-ot", f"blk[.]({'|'.join(map(str, range(60)))})[.]ffn_up_exps=CUDA0"],
        "prediction": {"prompt_tok_s": {"512": 112.0, "16384": 405.0}, "offload_tokens": THRESHOLD},
    }
    machine = {"cpu": {"model": "AMD EPYC 9175F 16-Core Processor"}, "model": {"sha256": "e3b0c44298fc1c14" * 4}}
    session = replace(session, plan=plan, fingerprint=machine, runs=(*made[:13], lost, *made[13:]))
    folder = tmp_path_factory.mktemp("report")
    report.write(session, folder)
    return folder


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    pages = {"/": (folder / report.PAGE).read_bytes(), "/broken": BROKEN.encode()}
    pages |= {f"/probe{path}": PROBE.replace("PAGE", path).encode() for path in list(pages)}
    with served(pages) as site:
        yield site


@pytest.mark.parametrize("scheme", PAGES)
def test_light_and_dark(chromium: str, site: Site, tmp_path: Path, scheme: str) -> None:
    """The page has the colours that the reader asked for, logs nothing, and asks for nothing but itself."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = SCREENSHOTS / f"{scheme}.png"
    picture.unlink(missing_ok=True)
    wish = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    run = browse(chromium, site, tmp_path, "/", wish, "--window-size=1100,3400", f"--screenshot={picture}")
    pixels = (imread(picture)[:, :, :3] * 255).round().astype(int)
    assert tuple(pixels[3, 3].tolist()) == PAGES[scheme]
    # It is drawn: many colours, to the bottom.
    assert len({tuple(row) for row in pixels[::7, ::7].reshape(-1, 3).tolist()}) > 50
    assert console(run) == []
    assert [each for each in site.asked if not CHROMIUMS_OWN.fullmatch(each)] == [f"{SITE}/"]


def test_on_a_phone(chromium: str, site: Site, tmp_path: Path) -> None:
    """Nothing is wider than the page: tables move within themselves."""
    run = browse(chromium, site, tmp_path, "/probe/", "--dump-dom")
    found = re.search(r'data-found="(\d+),(\d+),(\d+)"', run.stdout)
    assert found, run.stdout
    width, page, pictures = map(int, found.groups())
    assert (width, page, pictures) == (PHONE_PX, PHONE_PX, 3)
    assert console(run) == []
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = SCREENSHOTS / "phone.png"
    browse(chromium, site, tmp_path, "/probe/", f"--window-size={PHONE_PX},6000", f"--screenshot={picture}")
    assert picture.stat().st_size > 0


def test_on_paper(chromium: str, site: Site, tmp_path: Path) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    paper = SCREENSHOTS / "print.pdf"
    run = browse(chromium, site, tmp_path, "/", "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    assert paper.read_bytes().startswith(b"%PDF")
    assert console(run) == []


def test_a_broken_page_is_found_out(chromium: str, site: Site, tmp_path: Path) -> None:
    """What is asserted above can fail: an error, a request, a page that is too wide."""
    run = browse(chromium, site, tmp_path, "/probe/broken", "--dump-dom")
    assert any("broken" in line for line in console(run))
    assert "http://elsewhere.test/a.png" in site.asked
    found = re.search(r'data-found="(\d+),(\d+)', run.stdout)
    assert found and int(found[1]) > int(found[2])
