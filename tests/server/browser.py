"""A real browser for the tests of the web page: the system's Chromium without a window, driven by playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 60_000


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The browser. Skips where it, or what drives it, is not installed."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    driver.expect.set_options(timeout=WAIT_MS)
    with driver.sync_playwright() as tool:
        # Its sandbox needs rights that containers lack; the pages are our own.
        browser = tool.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Tab:
    """A page with what went wrong in it: `complaints` of the console, scripts that failed, requests to elsewhere."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(WAIT_MS)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.address = address
        self.page.on("console", lambda m: self._said(m) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asked)
        self.page.goto(f"http://{address}/")

    def _said(self, message: Any) -> None:
        # The browser itself notes each answer that is an error; tests ask for some.
        if not message.text.startswith("Failed to load resource"):
            self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((f"http://{self.address}/", "blob:")):
            self.complaints.append(request.url)

    def close(self) -> None:
        """Close it; fail where something went wrong in it."""
        hacked = self.page.evaluate("window.hacked")
        self.context.close()
        assert hacked is None
        assert self.complaints == []
