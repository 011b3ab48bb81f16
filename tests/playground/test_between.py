"""The animation between two images: fetched once, then played, paused, stepped through, and had as a file."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.chromium

FRAMES = 32
# The pixels of an element that is an image, as numbers.
PIXELS = """(image) => {
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def pixels(page: Page, selector: str) -> np.ndarray:
    """Return uint8 [H, W, 3] of an image on the page."""
    shown = np.array(page.locator(selector).evaluate(PIXELS), dtype=np.uint8)
    side = int(np.sqrt(len(shown) / 4))
    return shown.reshape(side, side, 4)[..., :3]


def position(page: Page) -> int:
    return int(page.locator("#frame-value").inner_text().partition("/")[0])


def test_frames_are_fetched_once_play_pause_and_lead_there(open_page: Any) -> None:
    watched = open_page("#class=7&seed=42&toSeed=9")
    page = watched.page
    page.locator("#play").click()
    expect(page.locator("#between-note")).to_have_text(f"{FRAMES} frames, made once.")
    expect(page.locator("#play")).to_have_text("Pause")
    seen = set()
    for _ in range(10):
        seen.add(page.locator("#frame").get_attribute("src"))
        page.wait_for_timeout(130)
    assert len(seen) >= 3  # it moves
    page.locator("#play").click()
    expect(page.locator("#play")).to_have_text("Play")
    still = position(page)
    page.wait_for_timeout(300)
    assert position(page) == still
    page.locator("#scrub").focus()
    page.keyboard.press("Home")
    expect(page.locator("#frame-value")).to_have_text(f"1/{FRAMES}")
    np.testing.assert_array_equal(pixels(page, "#frame"), pixels(page, "#picture img"))
    page.keyboard.press("ArrowRight")
    expect(page.locator("#frame-value")).to_have_text(f"2/{FRAMES}")
    page.locator("#play").click()
    page.wait_for_timeout(300)
    assert position(page) > 2
    page.locator("#scrub").fill(str(FRAMES // 2))  # a loop is there and back
    far = pixels(page, "#frame")
    assert len(watched.asked("/interpolate")) == 1
    page.locator("#seed").fill("9")
    page.keyboard.press("Enter")
    expect(page.locator("#what")).to_have_text("sneaker seed 9")
    np.testing.assert_array_equal(far, pixels(page, "#picture img"))


def test_other_image_or_goal_puts_the_frames_away(open_page: Any) -> None:
    watched = open_page("#class=7&seed=42&toSeed=9")
    page = watched.page
    for change in (page.locator("#next"), page.locator("#to-dice")):
        page.locator("#play").click()
        expect(page.locator("#play")).to_have_text("Pause")
        change.click()
        expect(page.locator("#play")).to_have_text("Play")
        expect(page.locator("#scrub")).to_be_disabled()
        expect(page.locator("#between-curl")).to_be_hidden()
    assert len(watched.asked("/interpolate")) == 2


def test_goal_is_in_the_address(open_page: Any) -> None:
    page = open_page("#class=7&seed=42").page
    page.locator("#between summary").click()
    expect(page.locator("#to-seed")).not_to_have_value("")
    page.locator("#to-seed").fill("123")
    page.keyboard.press("Enter")
    expect(page).to_have_url(page.url.partition("#")[0] + "#class=7&seed=42&toSeed=123")
    page.reload()
    expect(page.locator("#between")).to_have_attribute("open", "")
    expect(page.locator("#to-seed")).to_have_value("123")


def test_curl_line_gives_the_animation(open_page: Any, tmp_path: Path) -> None:
    page = open_page("#class=7&seed=42&toSeed=9&psi=0.8").page
    page.locator("#play").click()
    expect(page.locator("#play")).to_have_text("Pause")
    line = page.locator("#between-curl").inner_text()
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, capture_output=True, timeout=20)
    animation = Image.open(io.BytesIO((tmp_path / "between.webp").read_bytes()))
    assert animation.n_frames == FRAMES
    page.locator("#scrub").focus()
    for key, frame in (("Home", 0), ("End", FRAMES - 1)):
        page.keyboard.press(key)
        expect(page.locator("#frame-value")).to_have_text(f"{frame + 1}/{FRAMES}")
        animation.seek(frame)
        np.testing.assert_array_equal(np.asarray(animation.convert("RGB")), pixels(page, "#frame"))
