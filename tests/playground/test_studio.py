"""Stages side by side, blends of two classes, and the way from one class to another."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.chromium

STAGES = 3


def curl(page: Page, folder: Path) -> bytes:
    """Run the command that the page shows; return what it fetched."""
    line = page.locator("#curl").inner_text()
    subprocess.run(["sh", "-c", line], cwd=folder, check=True, capture_output=True, timeout=20)
    return max(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns).read_bytes()


@pytest.mark.parametrize("width", [360, 1280])
def test_stages_fit_side_by_side_on_any_screen(open_page: Any, width: int) -> None:
    page = open_page("#class=7&seed=42", viewport={"width": width, "height": 740}).page
    page.locator("#stages summary").click()
    stages = page.locator("#stage-strip button")
    expect(stages).to_have_count(STAGES)
    boxes = [box for box in (each.bounding_box() for each in stages.all()) if box]
    assert len({box["y"] for box in boxes}) == 1
    assert all(90 < box["width"] <= 192 and box["x"] + box["width"] <= width for box in boxes)


def test_stages_can_be_looked_at_one_by_one(open_page: Any, address: str, tmp_path: Path) -> None:
    watched = open_page("#class=7&seed=42")
    page = watched.page
    assert not [each for each in watched.asked("/generate") if "stage=" in each.url]
    page.locator("#stages summary").click()
    stages = page.locator("#stage-strip button")
    expect(stages).to_have_count(STAGES)
    expect(stages.last).to_have_attribute("aria-pressed", "true")
    stages.first.click()
    expect(page.locator("#what")).to_have_text(f"sneaker seed 42 · stage 1 of {STAGES}")
    expect(stages.first).to_have_attribute("aria-pressed", "true")
    parameters = {"class": 7, "seed": 42, "stage": 1}
    assert curl(page, tmp_path) == httpx.get(f"{address}/generate", params=parameters).content
    stages.last.click()
    expect(page.locator("#what")).to_have_text("sneaker seed 42")
    asked = len(watched.asked("/generate"))
    assert asked <= STAGES + 3  # the strip is not made again
    page.locator("#next").click()
    expect(page.locator("#what")).to_have_text("sneaker seed 43")
    for _ in range(100):  # up to 20 s: the stages come one after another
        page.wait_for_timeout(200)
        if len(watched.asked("/generate")) >= asked + 1 + STAGES:
            break
    page.wait_for_timeout(300)
    assert len(watched.asked("/generate")) == asked + 1 + STAGES


def test_two_classes_are_blended_and_parted_again(
    open_page: Any, address: str, tmp_path: Path
) -> None:
    page = open_page("#class=7&seed=42").page
    plain = curl(page, tmp_path)
    page.locator("#mix").click()
    page.keyboard.type("ankle")
    page.keyboard.press("Enter")
    expect(page.locator("#what")).to_have_text("sneaker 50 % + ankle boot 50 % seed 42")
    page.locator("#weight").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#what")).to_have_text("sneaker 70 % + ankle boot 30 % seed 42")
    expect(page.locator("#weight-second")).to_have_text("ankle boot 30 %")
    expect(page.locator("#curl")).to_contain_text("class=7:0.7,9:0.3")
    expect(page.locator("#permalink")).to_be_hidden()
    blended = curl(page, tmp_path)
    parameters = {"class": "7:0.7,9:0.3", "seed": 42}
    assert blended == httpx.get(f"{address}/generate", params=parameters).content
    expect(page).to_have_url(f"{address}/#class=7&mix=9&weight=0.3&seed=42")
    page.reload()
    expect(page.locator("#what")).to_have_text("sneaker 70 % + ankle boot 30 % seed 42")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#what")).to_have_text("sneaker seed 42")
    assert curl(page, tmp_path) == plain != blended


def test_frames_lead_to_another_class(open_page: Any) -> None:
    watched = open_page("#class=7&seed=42&toSeed=42")
    page = watched.page
    page.locator("#to").click()
    page.keyboard.type("bag")
    page.keyboard.press("Enter")
    page.locator("#play").click()
    expect(page.locator("#play")).to_have_text("Pause")
    (request,) = watched.asked("/interpolate")
    assert request.post_data_json["class"] == ["7", "8"]
    assert request.post_data_json["seed"] == [42, 42]
    expect(page).to_have_url(page.url.partition("#")[0] + "#class=7&seed=42&to=8&toSeed=42")
