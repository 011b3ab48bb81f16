"""What the page shows when something is wrong: errors, keys, a busy, slow or absent server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.serving.conftest import write_toy
from tests.serving.processes import ended, free_port, slow_server, start, wait_ready

pytestmark = pytest.mark.chromium

KEY = "a-key-that-nobody-should-see"
IMAGES_A_MINUTE = 120


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the model that ships to those who have the key, and not too much of it."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.write_text(f'bob = {{ key = "{KEY}", images_per_minute = {IMAGES_A_MINUTE} }}\n')
    port = free_port()
    command = ("-m", "cat_serve", "serve", "--port", str(port), "--threads", "1")
    with ended(start(*command, "--api-keys-file", str(file))) as process:
        wait_ready(process, port)
        yield f"http://127.0.0.1:{port}"


def test_error_is_shown_with_its_hint_and_goes_away(open_page: Any) -> None:
    page = open_page("#class=7&seed=42").page
    before = page.locator("#picture img").get_attribute("src")
    page.locator("#seed").fill("-5")
    page.keyboard.press("Enter")
    problem = page.locator("#problem")
    expect(problem).to_contain_text("seed '-5' is not an integer from 0 to 4294967295.")
    expect(problem).to_contain_text("Request ")
    assert page.locator("#picture img").get_attribute("src") == before
    page.locator("#seed").fill("5")
    page.keyboard.press("Enter")
    expect(page.locator("#what")).to_have_text("sneaker seed 5")
    expect(problem).to_be_hidden()


def test_address_with_an_unknown_class_says_what_there_is(open_page: Any) -> None:
    page = open_page("#class=99&seed=1", image=False).page
    expect(page.locator("#problem")).to_contain_text("has no class 99")
    expect(page.locator("#problem small").first).not_to_be_empty()
    page.locator("#class").click()
    page.keyboard.type("bag")
    page.keyboard.press("Enter")
    expect(page.locator("#what")).to_have_text("bag seed 1")


def test_key_is_asked_for_and_kept_in_memory_only(open_page: Any, guarded: str) -> None:
    page = open_page("#class=7&seed=42", at=guarded, image=False).page
    field = page.get_by_label("API key")
    field.fill("not-the-key-of-anybody")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("key is not known")
    field.fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#what")).to_have_text("sneaker seed 42")
    expect(field).to_be_hidden()
    expect(page.locator("#curl")).to_contain_text('"Authorization: Bearer $API_KEY"')
    kept = page.evaluate(
        "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
    )
    assert KEY not in kept + page.content()
    page.reload()
    expect(field).to_be_visible()


def test_busy_server_is_asked_again_when_it_said(open_page: Any, guarded: str) -> None:
    watched = open_page("#class=7&seed=42", at=guarded, image=False)
    page = watched.page
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#what")).to_have_text("sneaker seed 42")
    headers = {"Authorization": f"Bearer {KEY}"}
    for n in (40, 4):  # spend all but a few of them
        spent = {"class": 7, "seed": 1, "n": n}
        while httpx.post(f"{guarded}/generate", params=spent, headers=headers).is_success:
            pass
    page.get_by_role("radio", name="9", exact=True).check()
    expect(page.locator("#waiting")).to_contain_text("Trying again in")
    expect(page.locator("#what")).to_have_text("sneaker seeds 42 to 50")
    expect(page.locator("#waiting")).to_be_hidden()
    expect(page.locator("#problem")).to_be_hidden()
    answers = [each.response() for each in watched.asked("/generate")]
    assert [answer.status for answer in answers if answer][-2:] == [429, 200]


def test_absent_server_is_named_and_found_again(open_page: Any) -> None:
    page = open_page("#class=7&seed=42").page
    page.context.set_offline(True)
    page.locator("#next").click()
    expect(page.locator("#problem")).to_contain_text("cannot be reached")
    page.context.set_offline(False)
    page.locator("#next").click()
    expect(page.locator("#what")).to_have_text("sneaker seed 44")
    expect(page.locator("#problem")).to_be_hidden()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve two toy models that take a while for an image."""
    repository = tmp_path_factory.mktemp("models")
    models = {"fashion-32": ("cat", "dog"), "tools": ("saw", "axe", "saw")}
    for name, classes in models.items():
        write_toy(repository / name / "1", classes)
    with slow_server(repository, 0.6) as (address, _):
        yield address


def test_newest_wish_ends_those_before_it(open_page: Callable[..., Any], slow: str) -> None:
    watched = open_page("#class=1&seed=0", at=slow)
    page = watched.page
    gone: list[str] = []
    page.on("requestfailed", lambda request: gone.append(f"{request.failure} {request.url}"))
    for _ in range(4):
        page.locator("#next").click()
        page.wait_for_timeout(100)
    expect(page.locator("#what")).to_have_text("dog seed 4")
    assert all("seed=" in each and "ERR_ABORTED" in each for each in gone)
    assert 1 <= len(gone) <= 3
    assert len(watched.asked("/generate")) <= 5


def test_another_model_brings_its_classes(open_page: Callable[..., Any], slow: str) -> None:
    page = open_page("#class=1&seed=0", at=slow).page
    page.get_by_role("combobox", name="Model").select_option("tools")
    expect(page.locator("#what")).to_have_text("saw seed 0")
    expect(page.locator("#curl")).to_contain_text("class=0&seed=0")
    page.locator("#class").click()
    assert page.locator("#class-list [role=option]").all_inner_texts() == [
        "saw\n0", "axe\n1", "saw\n2",
    ]  # fmt: skip
