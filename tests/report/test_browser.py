"""The page in a browser: it renders without errors in both themes and at a phone's width."""

import functools
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from exported import Recipe
from latencies import make_latency
from PIL import Image

from funnel_export import check, load_bundle
from funnel_export.report.palette import DARK, LIGHT

pytestmark = pytest.mark.pictures

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
]
THEMES = {"dark": 0, "light": 1}
"""Chromium's values for the preferred colour scheme."""


@functools.cache
def browser() -> str:
    """The name of a Chromium or Chrome program."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    return found


def browse(page: Path, profile: Path, *options: str) -> str:
    """Open a page in a browser and return what it prints; fail on messages in the page's console."""
    command = [browser(), *QUIET, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all sections."""
    browser()
    folder = shutil.copytree(Recipe().bundle().path, tmp_path_factory.mktemp("browser") / "bundle")
    bundle = load_bundle(folder)
    (folder / "reports").mkdir(exist_ok=True)
    (folder / "reports" / "latency.json").write_text(make_latency(bundle).model_dump_json())
    check(bundle, max_length=6)
    return folder / "reports" / "report.html"


def test_it_renders(page: Path, tmp_path: Path) -> None:
    document = browse(page, tmp_path, "--dump-dom")
    assert "</main>" in document
    assert document.count("<svg") == 1 + 3 + 3 + 2 + 1
    assert document.count("<tr>") == page.read_text().count("<tr>")
    assert "openvino" in document


@pytest.mark.parametrize("width", [1280, 500])  # a headless window is at least 500 wide
def test_both_themes_are_drawn(page: Path, tmp_path: Path, width: int) -> None:
    grounds = {}
    for theme, number in THEMES.items():
        file = tmp_path / f"{theme}.png"
        options = f"--window-size={width},1600", f"--blink-settings=preferredColorScheme={number}"
        browse(page, tmp_path / theme, *options, f"--screenshot={file}")
        image = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        assert image.width == width
        grounds[theme] = "#{:02x}{:02x}{:02x}".format(*image.getpixel((2, 2)))
        colours = image.getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 200  # not a blank page
        drawn = {"#{:02x}{:02x}{:02x}".format(*colour) for _, colour in colours}
        palette = {"dark": DARK, "light": LIGHT}[theme]
        assert {palette["ink"], palette["funnel"], palette["grid"]} <= drawn
    assert grounds == {"dark": DARK["page"], "light": LIGHT["page"]}


def test_nothing_is_wider_than_a_phone(page: Path, tmp_path: Path) -> None:
    frame = tmp_path / "phone.html"
    script = "let d = f.contentDocument.documentElement; document.title = `${d.scrollWidth} of ${d.clientWidth}`"
    inner = page.read_text().replace("&", "&amp;").replace('"', "&quot;")
    inner = re.sub(r"<meta http-equiv=.*?>", "", inner)
    frame.write_text(f'<iframe id="f" width="360" height="800" srcdoc="{inner}" onload="{script}"></iframe>')
    document = browse(frame, tmp_path / "profile", "--dump-dom")
    found = re.search(r"<title>(\d+) of (\d+)</title>", document)
    assert found is not None
    assert found[1] == found[2]
