"""The page for everybody: keyboard, names, contrast, phones, and those who want nothing to move."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.chromium

PHONE = {"width": 360, "height": 740}
CONTRAST_OF_TEXT, CONTRAST_OF_EDGES = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11
TOUCH_PX = 24  # WCAG 2.2, 2.5.8

# For each visible piece of text: its colour, and the colours of the grounds it stands on, from the innermost.
TEXTS = """() => {
  const seen = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility() || element.closest(".hidden")) continue;
    if (element.closest(":disabled")) continue;
    const grounds = [];
    for (let each = element; each; each = each.parentElement) grounds.push(getComputedStyle(each).backgroundColor);
    seen.push([walk.currentNode.data.trim(), getComputedStyle(element).color, grounds]);
  }
  return seen;
}"""
EDGES = """() => [...document.querySelectorAll("input:not([type=range]):not([type=radio]), select, .button, button")]
  .filter((each) => each.checkVisibility() && !each.disabled && getComputedStyle(each).borderTopWidth !== "0px")
  .map((each) => [each.id, getComputedStyle(each).borderTopColor,
                  getComputedStyle(each.parentElement.closest("body, .popup")).backgroundColor])"""
SMALL = f"""() => [...document.querySelectorAll("a, button, input, select, summary")]
  .filter((each) => each.checkVisibility())
  .map((each) => [each.id || each.textContent, each.getBoundingClientRect()])
  .filter(([, box]) => Math.min(box.width, box.height) < {TOUCH_PX}).map(([name]) => name)"""
WIDE = """() => [...document.querySelectorAll("body *")].filter((each) => each.checkVisibility()
  && !each.closest(".hidden, #history ol") && each.getBoundingClientRect().right > innerWidth + 0.5)
  .map((each) => each.id || each.tagName)"""
OUTLINE = """() => {
  const focused = document.activeElement;
  const shown = focused.matches("[name=n]") ? focused.parentElement : focused;
  const style = getComputedStyle(shown);
  return [focused.id || focused.value || focused.textContent.trim(), style.outlineStyle, parseFloat(style.outlineWidth)];
}"""


def channels(colour: str) -> tuple[float, ...]:
    """Return red, green, blue (0..255) and alpha of a computed colour."""
    numbers = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")]
    return (*numbers[:3], numbers[3] if len(numbers) > 3 else 1.0)


def luminance(colour: tuple[float, ...]) -> float:
    """Return the relative luminance of a colour (WCAG 2.2, definitions)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in colour[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two opaque colours, 1..21."""
    low, high = sorted(luminance(channels(each)) for each in (one, other))
    return (high + 0.05) / (low + 0.05)


def ground(colours: list[str]) -> str:
    """Return the first colour that is there."""
    return next(colour for colour in colours if channels(colour)[3] == 1.0)


def open_everything(page: Page) -> None:
    """Show all that the page can show: a grid, an error, a blend, a list, and both sections."""
    page.get_by_role("radio", name="64", exact=True).check()
    expect(page.locator("#picture button")).to_have_count(64)
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    page.locator("#seed").fill("-1")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_be_visible()
    page.locator("#class").click()
    expect(page.locator("#class-list")).to_be_visible()


def test_contrast_suffices_in_light_and_dark(open_page: Any) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        page = open_page("#class=7&seed=1", color_scheme=scheme).page
        open_everything(page)
        texts = page.evaluate(TEXTS)
        assert len(texts) > 30
        weak = {
            text: round(contrast(colour, ground(under)), 2)
            for text, colour, under in texts
            if contrast(colour, ground(under)) < CONTRAST_OF_TEXT
        }
        assert not weak, scheme
        edges = page.evaluate(EDGES)
        assert len(edges) > 5
        assert not [
            (name, round(contrast(edge, under), 2))
            for name, edge, under in edges
            if contrast(edge, under) < CONTRAST_OF_EDGES
        ], scheme
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_everything_that_can_be_used_has_a_name(open_page: Any) -> None:
    page = open_page("#class=7&seed=1").page
    open_everything(page)
    used = page.locator("a, button, input, select, summary, pre, [role=option], #picture > *")
    visible = [each for each in used.all() if each.is_visible()]
    assert len(visible) > 80
    for each in visible[:20] + visible[-40:]:
        expect(each).to_have_accessible_name(re.compile(r"\S"))
    assert page.evaluate("document.documentElement.lang") == "en"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


def test_every_control_is_reached_by_tab_and_shows_it(open_page: Any) -> None:
    page = open_page("#class=7&seed=1").page
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        name, style, width = page.evaluate(OUTLINE)
        if page.evaluate("document.activeElement === document.body"):
            break
        reached.append(name)
        assert style == "solid", name
        assert width >= 2, name
    wanted = {"class", "previous", "seed", "next", "dice", "psi", "1", "download", "copy", "curl"}
    assert wanted <= set(reached)
    assert len(reached) == len(set(reached))


def test_result_and_error_are_announced(open_page: Any) -> None:
    page = open_page("#class=7&seed=1").page
    said = page.locator("#said")
    expect(said).to_have_attribute("aria-live", "polite")
    expect(said).to_have_text("sneaker, seed 1")
    expect(page.get_by_role("img", name="sneaker, seed 1")).to_be_visible()
    page.locator("#seed").fill("x")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("seed 'x' is not an integer")


def test_phone_has_the_image_first_and_nothing_beside_the_screen(open_page: Any) -> None:
    page = open_page("#class=7&seed=1", viewport=PHONE, has_touch=True, is_mobile=True).page
    expect(page.locator("#picture img")).to_be_in_viewport(ratio=1)
    assert page.evaluate(SMALL) == []
    open_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate(WIDE) == []
    page.locator("#class-list [role=option]").nth(8).tap()
    expect(page.locator("#class")).to_have_value("bag")


def test_nothing_moves_for_those_who_want_that(open_page: Any) -> None:
    moving = """() => [...document.querySelectorAll("body *")].filter((each) => {
      const style = getComputedStyle(each);
      return style.transitionDuration !== "0s" || style.animationName !== "none";
    }).length"""
    assert open_page("#class=7", reduced_motion="no-preference").page.evaluate(moving) > 0
    assert open_page("#class=7", reduced_motion="reduce").page.evaluate(moving) == 0
