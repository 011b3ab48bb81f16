"""A browser, a server with the model that ships, and pages that must stay quiet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.conftest import BROWSERS
from tests.serving.processes import shipped_server

WAIT_MS = 20_000
# The browser writes this for each answer that is an error; whether one was due is the test's to say.
FAILED_REQUEST = "Failed to load resource"


# Not for the whole session: the browser's driver keeps an event loop running, which no other suite must find.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    executable = next(filter(None, map(shutil.which, BROWSERS)))
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Serve the model that ships."""
    with shipped_server() as address:
        yield address


@dataclass
class Watched:
    """A page, and what it did that nobody sees."""

    page: Page
    host: str
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def asked(self, path: str) -> list[Request]:
        """Return the requests for a path so far."""
        return [each for each in self.requests if urlsplit(each.url).path == path]

    def require_quiet(self) -> None:
        """Fail if the page wrote an error, or spoke with another host."""
        assert not self.complaints
        hosts = {urlsplit(each.url).netloc for each in self.requests} - {""}  # blob: has none
        assert hosts <= {self.host}


OpenPage = Callable[..., Watched]


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[OpenPage]:
    """Open the playground and wait for its first image; arguments are those of a browser context."""
    opened: list[Watched] = []

    def open_(hash_: str = "", at: str = address, image: bool = True, **options: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}} | options)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        watched = Watched(page, urlsplit(at).netloc)
        opened.append(watched)
        page.on("request", lambda request: watched.requests.append(request))
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.on("console", lambda message: _note(watched, message))
        page.goto(f"{at}/{hash_}")
        if image:
            page.locator("#picture > *").first.wait_for()
        return watched

    yield open_
    for watched in opened:
        watched.page.context.close()
        watched.require_quiet()


def _note(watched: Watched, message: Any) -> None:
    if message.type in ("error", "warning") and not message.text.startswith(FAILED_REQUEST):
        watched.complaints.append(message.text)
