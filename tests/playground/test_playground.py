"""The page in a real browser, with a real server: clicks, keys, and what is on the screen."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from cat_serve.images import read_parameters

pytestmark = pytest.mark.chromium

SNEAKER = "#class=7&seed=42"


def shown(page: Page) -> bytes:
    """Return the file that is on the screen, by way of its download link."""
    address = page.locator("#download").get_attribute("href")
    assert address is not None
    cell = page.locator("#picture > *").first
    assert address in (cell.get_attribute("src") or cell.get_attribute("style") or "")
    with page.expect_download() as download:
        page.locator("#download").click()
    return Path(download.value.path()).read_bytes()


def made(address: str, **parameters: Any) -> bytes:
    """Ask the server itself for an image."""
    answer = httpx.get(f"{address}/generate", params=parameters, timeout=20)
    assert answer.status_code == 200, answer.text
    return answer.content


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def choose(page: Page, field: str, typed: str) -> None:
    """Search a class with the keyboard and take the first match."""
    page.locator(field).click()
    page.keyboard.type(typed)
    page.keyboard.press("Enter")


# --- the first screen ------------------------------------------------------------------------


def test_first_screen_shows_an_image_of_a_drawn_seed(open_page: Any, address: str) -> None:
    seeds = set()
    for _ in range(2):
        page = open_page().page
        image = page.locator("#picture img")
        expect(image).to_be_in_viewport(ratio=1)
        assert image.evaluate("each => each.naturalWidth") == 32
        assert image.evaluate("each => getComputedStyle(each).imageRendering") == "pixelated"
        seed = page.locator("#seed").input_value()
        seeds.add(seed)
        expect(page.locator("#what")).to_have_text(f"t-shirt seed {seed}")
        assert shown(page) == made(address, **{"class": 0, "seed": seed})
    assert len(seeds) == 2


def test_address_restores_what_was_shown(open_page: Any, address: str) -> None:
    page = open_page("#class=9&seed=5&psi=0.6&n=4").page
    expect(page.locator("#what")).to_have_text("ankle boot seeds 5 to 8 · ψ 0.6")
    before = shown(page)
    assert before == made(address, **{"class": 9, "seed": 5, "truncation_psi": 0.6, "n": 4})
    page.locator("#next").click()
    expect(page.locator("#what")).to_contain_text("seeds 9 to 12")
    expect(page).to_have_url(f"{address}/#class=9&seed=9&psi=0.6&n=4")
    after = shown(page)
    assert after != before
    page.reload()
    expect(page.locator("#what")).to_have_text("ankle boot seeds 9 to 12 · ψ 0.6")
    assert shown(page) == after
    page.evaluate("location.hash = '#class=9&seed=5&psi=0.6&n=4'")
    expect(page.locator("#what")).to_contain_text("seeds 5 to 8")
    assert shown(page) == before


# --- settings --------------------------------------------------------------------------------


def test_class_is_found_by_keyboard(open_page: Any, address: str) -> None:
    page = open_page(SNEAKER).page
    field = page.get_by_role("combobox", name="Class", exact=True)
    field.focus()
    page.keyboard.type("sh")
    options = page.locator("#class-list [role=option]")
    assert options.all_inner_texts() == ["shirt\n6", "t-shirt\n0"]
    page.keyboard.press("ArrowDown")
    active = field.get_attribute("aria-activedescendant")
    expect(page.locator(f"#{active}")).to_have_attribute("aria-selected", "true")
    expect(page.locator(f"#{active}")).to_contain_text("t-shirt")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator("#what")).to_have_text("shirt seed 42")
    expect(field).to_have_attribute("aria-expanded", "false")
    assert shown(page) == made(address, **{"class": 6, "seed": 42})


@pytest.mark.parametrize(("typed", "name"), [("9", "ankle boot"), ("boot", "ankle boot")])
def test_class_is_found_by_index_or_word(open_page: Any, typed: str, name: str) -> None:
    page = open_page(SNEAKER).page
    choose(page, "#class", typed)
    expect(page.locator("#what")).to_have_text(f"{name} seed 42")


def test_near_miss_gets_a_suggestion_and_escape_changes_nothing(open_page: Any) -> None:
    page = open_page("#class=8&seed=42").page
    field = page.locator("#class")
    field.click()
    page.keyboard.type("snaeker")
    expect(page.locator("#class-box .note")).to_have_text("No class is called snaeker. Nearly:")
    assert page.locator("#class-list [role=option]").all_inner_texts() == ["sneaker\n7"]
    page.keyboard.press("Escape")
    expect(field).to_have_value("bag")
    page.keyboard.type("zebra")
    expect(page.locator("#class-box .note")).to_have_text("No class is called zebra.")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(field).to_have_value("bag")
    choose(page, "#class", "snaeker")
    expect(page.locator("#what")).to_have_text("sneaker seed 42")


def test_seed_is_drawn_typed_and_stepped(open_page: Any, address: str) -> None:
    page = open_page(SNEAKER).page
    page.get_by_role("button", name="Next seed").click()
    expect(page.locator("#what")).to_have_text("sneaker seed 43")
    page.get_by_role("button", name="Previous seed").click(click_count=2)
    expect(page.locator("#what")).to_have_text("sneaker seed 41")
    page.get_by_role("button", name="Draw a seed").click()
    expect(page.locator("#what")).not_to_have_text("sneaker seed 41")
    assert shown(page) == made(address, **{"class": 7, "seed": page.locator("#seed").input_value()})
    page.locator("#seed").fill("4294967295")
    page.keyboard.press("Enter")
    expect(page.locator("#what")).to_have_text("sneaker seed 4294967295")
    expect(page.get_by_role("button", name="Next seed")).to_be_disabled()


def test_slider_is_live_and_asks_one_thing_at_a_time(open_page: Any, address: str) -> None:
    watched = open_page(SNEAKER)
    page = watched.page
    under_way, most = 0, 0
    finished: list[str] = []

    def began(request: Any) -> None:
        nonlocal under_way, most
        if "/generate" in request.url:
            under_way += 1
            most = max(most, under_way)

    def ended(request: Any) -> None:
        nonlocal under_way
        if "/generate" in request.url:
            under_way -= 1
            finished.append(request.url)

    page.on("request", began)
    page.on("requestfinished", ended)
    page.on("requestfailed", ended)
    box = page.locator("#psi").bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] - 8, y)
    page.mouse.down()
    for i in range(60):
        page.mouse.move(box["x"] + box["width"] - 8 - i * (box["width"] / 2 - 8) / 59, y)
    page.mouse.up()
    psi = page.locator("#psi").input_value()
    assert 0.45 < float(psi) < 0.55
    expect(page.locator("#what")).to_have_text(f"sneaker seed 42 · ψ {psi}")
    assert most == 1
    assert 2 <= len(finished) < 55
    assert shown(page) == made(address, **{"class": 7, "seed": 42, "truncation_psi": psi})


def test_slider_obeys_the_arrow_keys(open_page: Any) -> None:
    page = open_page("#class=7&seed=42&psi=0.5").page
    page.locator("#psi").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#psi-value")).to_have_text("0.51")
    expect(page.locator("#what")).to_have_text("sneaker seed 42 · ψ 0.51")


def test_each_image_of_a_grid_becomes_the_seed(open_page: Any, address: str) -> None:
    page = open_page("#class=7&seed=100").page
    page.get_by_role("radio", name="9", exact=True).check()
    cells = page.locator("#picture button")
    expect(cells).to_have_count(9)
    expect(cells.nth(4)).to_have_accessible_name("sneaker, seed 104")
    grid = pixels(shown(page))
    assert grid.shape == (96, 96, 3)
    screen = pixels(cells.nth(4).screenshot())[..., :3]
    cells.nth(4).click()
    expect(page.locator("#what")).to_have_text("sneaker seed 104")
    one = pixels(shown(page))
    np.testing.assert_array_equal(one, grid[32:64, 32:64])
    np.testing.assert_array_equal(one, pixels(made(address, **{"class": 7, "seed": 104})))
    centres = ((np.arange(32) + 0.5) * len(screen) / 32).astype(int)  # the cell shows its own part
    seen = screen[np.ix_(centres, centres)].astype(int)
    assert np.abs(seen - one)[2:-2, 2:-2].mean() < 3


# --- having it elsewhere ---------------------------------------------------------------------


@pytest.mark.parametrize("hash_", [SNEAKER, "#class=9&seed=5&psi=0.6&n=9"])
def test_curl_line_gives_what_is_shown(open_page: Any, hash_: str, tmp_path: Path) -> None:
    page = open_page(hash_).page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    line = page.evaluate("navigator.clipboard.readText()")
    assert line == page.locator("#curl").inner_text()
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, capture_output=True, timeout=20)
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == shown(page)
    assert file.name == page.locator("#download").get_attribute("download")


def test_permalink_opens_the_image(open_page: Any) -> None:
    page = open_page("#class=7&seed=42&psi=0.7").page
    link = page.get_by_role("link", name="Permalink")
    assert urlsplit(link.get_attribute("href") or "").netloc in ("", urlsplit(page.url).netloc)
    with page.context.expect_page() as opened:
        link.click()
    opened.value.wait_for_load_state()
    assert "/images/fashion-32@" in opened.value.url
    answer = httpx.get(opened.value.url)
    assert answer.content == shown(page)
    assert opened.value.locator("img").evaluate("each => each.naturalWidth") == 32


def test_download_is_named_and_says_how_it_was_made(open_page: Any, tmp_path: Path) -> None:
    page = open_page("#class=7&seed=42&psi=0.7").page
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "fashion-32_class-7_seed-42.png"
    download.value.save_as(tmp_path / "image.png")
    told = read_parameters((tmp_path / "image.png").read_bytes())
    assert (told["class"], told["seed"], told["truncation_psi"]) == (7, 42, 0.7)


def test_timing_and_determinism_are_the_servers(open_page: Any) -> None:
    watched = open_page(SNEAKER)
    (request,) = watched.asked("/generate")
    headers = request.response().headers
    told = dict(part.split(";dur=") for part in headers["server-timing"].split(", "))
    text = watched.page.locator("#timing").inner_text()
    assert [part.split(" ")[0] for part in text.split(" · ")] == ["queue", "generate", "encode"]
    for part in text.split(" · "):
        stage, ms, unit = part.split(" ")
        assert unit == "ms"
        assert float(ms) == pytest.approx(float(told[stage]), abs=0.51)
    assert headers["x-determinism"] == "bytes"
    expect(watched.page.locator("#determinism b")).to_have_text("bytes")


def test_recent_images_can_be_gone_back_to(open_page: Any) -> None:
    page = open_page(SNEAKER).page
    first = shown(page)
    expect(page.locator("#said")).to_have_text("sneaker, seed 42")
    expect(page.locator("#history")).to_be_hidden()
    page.locator("#next").click()
    items = page.locator("#history button")
    expect(items).to_have_count(2)
    expect(items.first).to_have_accessible_name("sneaker, seed 43")
    items.nth(1).click()
    expect(page.locator("#what")).to_have_text("sneaker seed 42")
    assert shown(page) == first
    expect(items).to_have_count(2)
    expect(items.first).to_have_accessible_name("sneaker, seed 42")
