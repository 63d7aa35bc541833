# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The page of `oneref demo` with a tiny model, and a browser to look at it."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from oneref_hf import OneRefForGrounding, OneRefForSegmentation
from oneref_hf.pipeline_oneref import ReferringExpressionPipeline


BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def tiny_model(golden_model, tiny_processor, tmp_path_factory) -> Path:
    """The directory of a model that segments."""
    folder = tmp_path_factory.mktemp("demo") / "tiny"
    golden_model(OneRefForSegmentation).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def finder(golden_model, tiny_processor) -> ReferringExpressionPipeline:
    """Finds boxes and masks."""
    return _finder(golden_model(OneRefForSegmentation), tiny_processor)


@pytest.fixture(scope="session")
def box_finder(golden_model, tiny_processor) -> ReferringExpressionPipeline:
    """Finds boxes alone."""
    return _finder(golden_model(OneRefForGrounding), tiny_processor)


@pytest.fixture(scope="session")
def coffee(fixtures_dir) -> Path:
    return fixtures_dir / "coffee_210x140.png"


@pytest.fixture(scope="session")
def many_pixels(tmp_path_factory) -> Path:
    """A small file with 48 megapixels."""
    path = tmp_path_factory.mktemp("large") / "wall.png"
    Image.new("1", (8000, 6000)).save(path)
    return path


@pytest.fixture(scope="session")
def broken(coffee, tmp_path_factory) -> Path:
    """A picture that was cut off."""
    path = tmp_path_factory.mktemp("broken") / "broken.png"
    path.write_bytes(coffee.read_bytes()[:20_000])
    return path


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium. These tests are asked for (`-m demo`), so a missing one is an error, no reason to skip."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("ONEREF_TEST_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(
            "There is no Chromium: apt-get install chromium-headless-shell, or name one in ONEREF_TEST_BROWSER."
        )
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


def _finder(model, processor) -> ReferringExpressionPipeline:
    return ReferringExpressionPipeline(model=model, processor=processor, device="cpu")
