"""Netron serves a bundle's graph and, where there is a browser, shows where the funnel pools and recovers."""

import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import netron
import pytest
from cases import LINKED
from playwright.sync_api import Route, expect, sync_playwright

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(params=[LINKED, "text-generation-funnel", "text-generation-dense"])
def served(request: pytest.FixtureRequest, bundles: Path) -> Iterator[tuple[Path, str]]:
    """A graph, and the address at which Netron's server shows it."""
    graph = bundles / request.param / "model.onnx"
    host, port = address = netron.start(str(graph), browse=False)
    yield graph, f"http://{host}:{port}/"
    netron.stop(address)


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a headless browser that reaches this machine only."""
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip(f"no browser here, one of {', '.join(BROWSERS)}")

    def only_here(route: Route) -> None:
        if route.request.url.startswith("http://localhost:"):
            route.continue_()
        else:
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.route("**/*", only_here)
        yield page
        browser.close()


def test_serves_the_graph(served: tuple[Path, str]) -> None:
    graph, address = served
    with urllib.request.urlopen(address + "data/model.onnx") as answer:  # noqa: S310 - a server that this test started
        assert answer.read() == graph.read_bytes()


def test_shows_the_funnel(served: tuple[Path, str], page: Any, bundles: Path) -> None:
    graph, address = served
    page.context.add_cookies([{"name": "consent", "value": "asked", "url": address}])  # or it asks before it shows
    page.goto(address)
    page.locator("body.default").wait_for()  # drawn
    page.keyboard.press("Control+f")
    search = page.get_by_placeholder("Search")
    found = page.locator("#sidebar li:visible")
    search.fill("model.layers.0")  # every graph has it: an empty list later is not one that was never filled
    expect(found.filter(has_text="model.layers.0").first).to_be_visible()
    search.fill("funnel.")
    expect(found).to_have_text([] if "dense" in graph.parent.name else ["funnel.pooled", "funnel.recovered"])
    page.screenshot(path=bundles / f"netron-{graph.parent.name}.png")
