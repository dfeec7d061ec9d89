"""Debian's Chromium, driven by Playwright: a browser, and what a page in it must keep."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, expect, sync_playwright

_SET_UP = Path(__file__).parents[2] / ".cache" / "chromium"
_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE: ViewportSize = {"width": 1440, "height": 900}
NARROW: ViewportSize = {"width": 360, "height": 740}
# Two cores are shared with all that a real stack is.
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


def program() -> str:
    """Where Chromium is. Skips the test, with the set-up's own reason, on a machine that cannot have it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        missing = _SET_UP / "missing"
        pytest.skip(missing.read_text().strip() if missing.exists() else "chromium is not set up: make test")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. While it runs, this thread has Playwright's event loop: no other can run in it."""
    path = program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_QUIET))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(
    browser: Browser,
    url: str,
    *,
    viewport: ViewportSize = WIDE,
    dark: bool = False,
    language: str = "en-GB",
) -> Iterator[Page]:
    """A page with a storage of its own, at ``url``. Fails for what the page says of errors of its own."""
    told: list[str] = []

    def heard(line: ConsoleMessage) -> None:
        if "Content Security Policy" in line.text:
            told.append(line.text)

    context = browser.new_context(
        viewport=viewport,
        color_scheme="dark" if dark else "light",
        locale=language,
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("console", heard)
    try:
        page.goto(url)
        yield page
        assert told == []
    finally:
        context.close()


def serious(page: Page) -> list[str]:
    """What axe has against the page as it is drawn now, of what it calls serious or critical."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {', '.join(str(node['target'][0]) for node in one['nodes'][:4])}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    wider: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wider
