# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The page in a real browser: what a visitor does, sees and is told."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneref_hf.demo.answering import ModelSlot
from oneref_hf.visualization import draw_answers


pytestmark = pytest.mark.demo

PHRASES = ["the red cup", "the spoon left of it"]
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
PATIENCE = 120_000  # milliseconds; nothing waits that long unless the machine is busy or the test fails


class Counting:
    """A pipeline that counts how often it is asked."""

    def __init__(self, finder):
        self.finder, self.calls = finder, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.finder(*args, **kwargs)


@pytest.fixture(scope="module")
def served(finder):
    """The page with its model, as (address, slot, counting pipeline)."""
    from oneref_hf.demo.server import running_page

    slot, counting = ModelSlot("the tiny model"), Counting(finder)
    slot.load(lambda: counting)
    with running_page(slot) as address:
        yield address, slot, counting


@pytest.fixture
def visit(browser):
    """Returns a function that opens an address; sees to it that the browser asks no one else, and nothing fails."""
    contexts, wrong = [], []

    def open_page(address: str, viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        own = (address, "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#oneref-find")
        page.wait_for_selector("#oneref-picture input[type=file]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def screenshots(tmp_path) -> Path:
    """Where pictures of the page go, for people; ONEREF_SCREENSHOTS names a folder to keep them in."""
    folder = Path(os.environ.get("ONEREF_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def choose(page, path: Path):
    page.set_input_files("#oneref-picture input[type=file]", path)


def ask(page, path: Path, phrases=PHRASES):
    choose(page, path)
    page.wait_for_selector("#oneref-picture img")
    page.fill("#oneref-phrases textarea", "\n".join(phrases))
    page.click("#oneref-find")
    page.wait_for_selector(f"tbody tr:nth-child({len(phrases)})")


def visible_layers(page) -> list[str]:
    """The sources of the pictures that are seen on the stage."""
    return page.eval_on_selector_all(".oneref-stage img", "images => images.filter(i => !i.hidden).map(i => i.src)")


def stage_pixels(page, path: Path) -> np.ndarray:
    """What is seen on the stage, once it is painted: a layer that is shown again is decoded some time later."""
    page.evaluate(
        "Promise.all([...document.querySelectorAll('.oneref-stage img:not([hidden])')].map(image => image.decode()))"
    )
    before = None
    for _ in range(20):
        page.locator(".oneref-stage").screenshot(path=path)
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        if before is not None and np.array_equal(pixels, before):
            return pixels
        before = pixels
    raise AssertionError("the stage does not come to rest")


def test_two_phrases_are_answered(served, visit, coffee, finder, screenshots, tmp_path):
    address, _, _ = served
    page = visit(address)
    ask(page, coffee)
    page.screenshot(path=screenshots / "answer.png", full_page=True)
    found = finder(str(coffee), PHRASES)
    for row, expected in zip(page.locator("tbody tr").all(), found, strict=True):
        phrase, score, box = row.locator("th, td").all_inner_texts()
        assert phrase.strip() == expected["label"] and float(score) == pytest.approx(expected["score"], abs=1e-3)
        assert [float(side) for side in box.split(",")] == pytest.approx(list(expected["box"].values()), abs=0.06)
    assert re.search(r"2 phrases found in [\d.]+ seconds", page.inner_text("#oneref-status"))
    assert all(phrase in page.get_attribute(".oneref-stage", "aria-label") for phrase in PHRASES)

    with page.expect_download() as download:
        page.click("text=Save picture")
    assert download.value.suggested_filename == "coffee_210x140.oneref.png"
    download.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as saved, Image.open(coffee) as picture:
        difference = np.asarray(saved.convert("RGB")).astype(int) - np.asarray(draw_answers(picture, found))
        assert abs(difference).mean() < 3, "the drawing, on a picture that was sent as a JPEG"
    with page.expect_download() as download:
        page.click("text=Save JSON")
    assert download.value.suggested_filename == "coffee_210x140.oneref.json"
    annotations = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["annotations"]
    assert [one["phrase"] for one in annotations] == PHRASES


def test_toggles_are_live_and_ask_nobody(served, visit, coffee, screenshots):
    address, _, counting = served
    page = visit(address)
    ask(page, coffee)
    calls, requests = counting.calls, []
    page.on("request", lambda request: requests.append(request.url))
    everything = stage_pixels(page, screenshots / "stage.png")
    layers = visible_layers(page)

    seen = [everything]
    for kind in ("label", "mask", "box"):
        page.uncheck(f"[data-kind={kind}]")
        seen.append(stage_pixels(page, screenshots / f"stage-without-{kind}.png"))
        assert abs(seen[-1] - seen[-2]).max() > 50, f"{kind} was drawn before and is not now"
    assert len(visible_layers(page)) == 1, "the picture alone is left"
    for kind in ("box", "mask", "label"):
        page.check(f"[data-kind={kind}]")
    assert visible_layers(page) == layers and np.array_equal(stage_pixels(page, screenshots / "stage.png"), everything)

    page.uncheck("[data-answer='0']")
    assert set(visible_layers(page)) < set(layers)
    page.check("[data-answer='0']")

    page.check("[data-kind=heat]")
    first = visible_layers(page)[0]
    assert first != layers[0] and page.is_visible(".oneref-scale")
    page.screenshot(path=screenshots / "heat.png", full_page=True)
    page.check("[name=oneref-heat] >> nth=1")
    second = visible_layers(page)[0]
    assert second not in (first, layers[0]) and "spoon" in page.get_attribute(".oneref-stage", "aria-label")
    page.uncheck("[data-kind=heat]")
    assert visible_layers(page) == layers and not page.is_visible(".oneref-scale")
    assert counting.calls == calls and not [url for url in requests if not url.startswith(("data:", "blob:"))]


def test_an_example_answers_with_one_click(served, visit, screenshots):
    page = visit(served[0])
    page.screenshot(path=screenshots / "start.png", full_page=True)
    page.click("[data-example='1']")
    page.wait_for_selector("tbody tr:nth-child(3)")
    assert page.input_value("#oneref-phrases textarea").splitlines()[1:] == ["the largest cup", "the green ring"]
    page.screenshot(path=screenshots / "example.png", full_page=True)


@pytest.mark.parametrize("gesture", ["paste", "drop"])
def test_pictures_are_pasted_and_dropped(served, visit, coffee, gesture):
    page = visit(served[0])
    handed_over = """async ([gesture, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "handed.png", { type: "image/png" }));
        const pasted = new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
        const dropped = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
        document.body.dispatchEvent(gesture === "paste" ? pasted : dropped);
    }"""
    for _ in range(2):  # the second replaces the first
        page.evaluate(handed_over, [gesture, list(coffee.read_bytes())])
        page.wait_for_selector("#oneref-picture img[src*='handed.png']")
    page.fill("#oneref-phrases textarea", "the cup")
    page.click("#oneref-find")
    page.wait_for_selector("tbody tr")


# What goes wrong


def alert(page) -> str:
    page.wait_for_selector("#oneref-status [role=alert]")
    return page.inner_text("#oneref-status")


def test_nothing_to_ask(served, visit, coffee, screenshots):
    page = visit(served[0])
    page.click("#oneref-find")
    assert "There is no picture yet" in alert(page)
    choose(page, coffee)
    page.wait_for_selector("#oneref-status [role=alert]", state="detached")
    page.fill("#oneref-phrases textarea", "  \n ")
    page.click("#oneref-find")
    assert "There is no phrase yet" in alert(page)
    page.screenshot(path=screenshots / "no-phrase.png")


def test_a_broken_picture_is_named_at_once_and_when_asked(served, visit, broken, coffee, screenshots):
    page = visit(served[0])
    choose(page, broken)
    assert "“broken.png” cannot be read" in alert(page)
    page.fill("#oneref-phrases textarea", "the cup")
    page.click("#oneref-find")
    page.wait_for_timeout(500)
    assert "“broken.png” cannot be read" in alert(page)
    page.screenshot(path=screenshots / "broken.png")
    ask(page, coffee)
    assert page.locator("#oneref-status [role=alert]").count() == 0


def test_pictures_that_are_too_large_are_told_the_limit(served, visit, many_pixels, tmp_path, screenshots):
    page = visit(served[0])
    choose(page, many_pixels)
    assert re.search(r"8000 × 6000 pixels.*up to 20 MB and 40 megapixels", alert(page))
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(bytes(21 * 2**20))
    page = visit(served[0])
    choose(page, heavy)
    assert re.search(r"“heavy\.png” is too large.*20 MB", alert(page))
    page.screenshot(path=screenshots / "too-large.png")


def test_while_the_model_loads(visit, finder, coffee, screenshots):
    from oneref_hf.demo.server import running_page

    slot = ModelSlot("a model that takes its time")
    with running_page(slot) as address:
        page = visit(address)
        page.wait_for_selector("#oneref-loading >> text=The model is loading")
        choose(page, coffee)
        page.wait_for_selector("#oneref-picture img")
        page.fill("#oneref-phrases textarea", "the cup")
        page.click("#oneref-find")
        page.wait_for_selector("#oneref-status >> text=The model is still loading")
        page.screenshot(path=screenshots / "loading.png")
        slot.load(lambda: finder)
        page.wait_for_selector("tbody tr")
        page.wait_for_selector("#oneref-loading", state="hidden")
        assert page.locator("tbody tr").count() == 1


# Whoever has no mouse or a small screen


def test_the_keyboard_is_enough(served, visit, coffee, screenshots):
    page = visit(served[0])

    def tab_to(selector: str, limit: int = 25):
        for _ in range(limit):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"{selector} is not among the next {limit} stops of the Tab key")

    # Expected before the first key: until the browser has heard of it, a chooser opens unseen.
    with page.expect_file_chooser() as chooser:
        tab_to("#oneref-picture button.upload-container")
        page.keyboard.press("Enter")
    chooser.value.set_files(coffee)
    page.wait_for_selector("#oneref-picture img")
    tab_to("#oneref-phrases textarea")
    page.keyboard.type("the red cup")
    page.keyboard.press("Enter")
    page.keyboard.type("the spoon")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("tbody tr:nth-child(2)")
    tab_to("#oneref-find")
    for selector in ("[data-kind=box]", "[data-kind=mask]", "[data-kind=label]"):
        tab_to(selector)
        page.keyboard.press("Space")
        assert not page.is_checked(selector)
    assert len(visible_layers(page)) == 1
    tab_to("[data-kind=heat]")
    page.keyboard.press("Space")
    assert page.is_visible(".oneref-scale")
    page.screenshot(path=screenshots / "keyboard.png")
    tab_to("[data-save=json]")
    with page.expect_download():
        page.keyboard.press("Enter")
    tab_to("[name=oneref-heat]")
    before = visible_layers(page)
    page.keyboard.press("ArrowRight")
    assert visible_layers(page) != before
    tab_to("[data-answer='1']")
    tab_to("[data-example='0']")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('tbody th').innerText.includes('the cup of coffee')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(served, visit, coffee, scheme, screenshots):
    page = visit(served[0], PHONE, has_touch=True, is_mobile=True, device_scale_factor=2, color_scheme=scheme)
    ask(page, coffee, [*PHRASES, "a phrase so long that it has no place in one line of a telephone, nor maybe in two"])
    page.wait_for_function("document.querySelector('#oneref-answer').getBoundingClientRect().top < innerHeight / 3")
    time.sleep(0.5)  # the page glides to the answer
    page.screenshot(path=screenshots / f"phone-{scheme}.png")
    page.tap("[data-kind=heat]")
    page.screenshot(path=screenshots / f"phone-{scheme}-full.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "nothing to scroll sideways"
    sizes = page.eval_on_selector_all(
        "#oneref-find, .oneref-tools label, .oneref-saves button, .oneref-heats label, #oneref-examples button",
        "found => found.filter(e => e.offsetParent).map(e => [e.innerText, e.offsetHeight])",
    )
    assert len(sizes) >= 14 and not [name for name, height in sizes if height < 40], "fit for fingers"


def test_words_stand_out_from_their_ground(served, visit, coffee):
    """WCAG 2.2 asks for a contrast of 4.5, in both colour schemes."""
    measure = """() => {
        const luminance = (rgb) => rgb.map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const parse = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
        const ground = (element) => {
            for (let e = element; e; e = e.parentElement) {
                const colour = parse(getComputedStyle(e).backgroundColor);
                if (colour.length && (colour[3] ?? 1) > 0.99) return colour;
            }
            return [255, 255, 255];
        };
        const poor = [];
        for (const element of document.querySelectorAll("main *")) {
            const words = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
            if (!words || !element.offsetParent) continue;
            const colours = [parse(getComputedStyle(element).color), ground(element)];
            const [a, b] = colours.map((colour) => luminance(colour.slice(0, 3)));
            const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            if (contrast < 4.5) poor.push(`${element.innerText.slice(0, 40)}: ${contrast.toFixed(2)}`);
        }
        return poor;
    }"""
    for scheme in ("light", "dark"):
        page = visit(served[0], color_scheme=scheme)
        ask(page, coffee)
        page.check("[data-kind=heat]")
        assert page.evaluate(measure) == [], scheme
        assert page.locator("main *").count() > 50


def test_the_page_of_the_shipped_model_says_what_it_knows(visit, finder, screenshots):
    from oneref_hf.demo.server import running_page

    slot = ModelSlot("the small one", shipped=True)
    slot.load(lambda: finder)
    with running_page(slot) as address:
        page = visit(address)
        assert "nothing of photographs" in page.inner_text("#oneref-header")
        assert page.locator("#oneref-examples img[alt=Photograph]").count() == 0
        page.screenshot(path=screenshots / "shipped.png", full_page=True)
