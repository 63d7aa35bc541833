# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The training transform: equal to the evaluation goldens when nothing is random, consistent when everything is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from safetensors.torch import load_file
from torch.nn.functional import interpolate

from oneref_hf.data.augmentation import (
    ReferringAugmentation,
    TrainingTransform,
    _black,
    _cropped,
    _Frame,
    _grey,
    _mean_grey,
    _resized,
    has_direction_word,
)


FIXTURES = Path(__file__).parent.parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "preprocess.json").read_text())
STILL = {"num_scales": 1, "crop": False, "translate": False, "color_jitter": 0.0}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(width: int, height: int, box: tuple[int, int, int, int]) -> tuple[Image.Image, np.ndarray]:
    """A white box on black, as picture and as mask."""
    mask = np.zeros((height, width), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return Image.fromarray(mask * 255).convert("RGB"), mask


def ramp(width: int, height: int) -> Image.Image:
    """Red is 255 * x / (width - 1), green 255 * y / (height - 1): any crop of it tells where it was taken."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).round()
    pixels[..., 1] = np.linspace(0, 255, height).round()[:, None]
    return Image.fromarray(pixels)


def tight_box(mask) -> np.ndarray:
    """x0, y0, x1, y1 of the set pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def corners(sample: dict) -> np.ndarray:
    """The box labels as x0, y0, x1, y1 in canvas pixels."""
    cx, cy, w, h = (sample["box_labels"] * sample["pixel_values"].shape[-1]).tolist()
    return np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


def picture_of(sample) -> Image.Image:
    return Image.fromarray(sample.picture.to(torch.uint8).permute(1, 2, 0).numpy())


def is_cropped(image: Image.Image, original: Image.Image) -> bool:
    """By the aspect: uncropped, the short side is that of the original to a pixel."""
    ratio = max(image.size) / max(original.size)
    return any(abs(new - old * ratio) > 1 for new, old in zip(image.size, original.size))


@pytest.mark.parametrize("name", GOLDEN)
def test_without_randomness_it_is_the_evaluation_transform(name):
    golden = load_file(FIXTURES / "preprocess.safetensors")
    stem, size = name.rsplit(".", 1)
    sample = TrainingTransform(int(size), **STILL)(
        Image.open(FIXTURES / f"{stem}.png"),
        "a phrase",
        GOLDEN[name]["image_box_xyxy"],
        golden[f"{stem}.source_mask"][0].numpy(),
    )
    if f"{name}.pixel_values" in golden:
        torch.testing.assert_close(sample["pixel_values"], golden[f"{name}.pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal((sample["pixel_values"] != 0).any(0), golden[f"{name}.pixel_mask"].bool())
    assert torch.equal(sample["mask_labels"], golden[f"{name}.target_mask"][0])
    torch.testing.assert_close(
        sample["box_labels"], torch.tensor(GOLDEN[name]["target_box_cxcywh"]), rtol=0, atol=1e-6
    )
    assert "pixel_values_unnormalized" not in sample


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (600, 400, (200, 100, 420, 300)),
        (400, 600, (0, 0, 90, 120)),
        (120, 500, (30, 400, 110, 500)),
        (50, 50, (10, 5, 40, 49)),
    ],
)
def test_picture_mask_and_box_stay_together(width, height, box):
    image, mask = scene(width, height, box)
    transform = TrainingTransform(384, color_jitter=0.0, for_visual_tokens=True)
    for seed in range(30):
        sample = transform(image, "a thing", box, mask, generator(seed))
        labelled = corners(sample)
        assert (sample["box_labels"][2:] > 0).all()
        assert labelled.min() >= -0.5 and labelled.max() <= 384.5
        # Nearest-neighbour sampling may move an edge by just under a pixel in each of at most two resizings.
        np.testing.assert_allclose(tight_box(sample["mask_labels"].numpy()), labelled, atol=1.75)
        bright = (sample["pixel_values_unnormalized"][0] > 0.5).numpy()
        np.testing.assert_allclose(tight_box(bright), labelled, atol=1.0)


def test_uncropped_masks_follow_within_a_pixel_and_a_half():
    """One for nearest-neighbour sampling, a half because boxes follow the exact ratio and sides are rounded."""
    image, mask = scene(333, 217, (40, 50, 201, 160))
    transform = TrainingTransform(384, color_jitter=0.0)
    for seed in range(60):
        sample = transform(image, "the left one", (40, 50, 201, 160), mask, generator(seed))
        np.testing.assert_allclose(tight_box(sample["mask_labels"].numpy()), corners(sample), atol=1.5)


def test_canvases_hold_the_same_picture():
    image = Image.open(FIXTURES / "coffee_210x140.png")
    sample = TrainingTransform(384, for_visual_tokens=True)(image, "cup", (42, 14, 147, 112), None, generator(5))
    plain, normalized = sample["pixel_values_unnormalized"], sample["pixel_values"]
    picture = (normalized != 0).any(0)
    assert "mask_labels" not in sample and picture.any() and not picture.all()
    assert plain.min() >= 0 and plain.max() <= 1
    assert (plain[:, ~picture] == 0).all()
    torch.testing.assert_close(normalized[:, picture], ((plain - MEAN) / STD)[:, picture])


def test_samples_follow_the_generator_and_nothing_else():
    image = Image.open(FIXTURES / "coffee_210x140.png")
    transform = TrainingTransform(384, blur=True, for_visual_tokens=True)

    def draw(seed):
        return transform(image, "cup", (42, 14, 147, 112), np.ones((140, 210)), generator(seed))

    torch.manual_seed(0)
    np.random.seed(0)
    first = draw(3)
    torch.manual_seed(1)
    np.random.seed(1)
    again, other = draw(3), draw(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    torch.manual_seed(9)
    unseeded = transform(image, "cup", (42, 14, 147, 112))
    torch.manual_seed(9)
    assert torch.equal(unseeded["pixel_values"], transform(image, "cup", (42, 14, 147, 112))["pixel_values"])


def test_crops_happen_half_of_the_time_and_never_with_direction_words():
    image = ramp(600, 400)
    augment = ReferringAugmentation(color_jitter=0.0)

    def cropped(phrase, count, augment=augment):
        samples = [augment(image, phrase, (250, 150, 350, 250), None, generator(seed)) for seed in range(count)]
        return sum(is_cropped(picture_of(sample), image) for sample in samples)

    assert 50 < cropped("a person", 130) < 80
    for phrase in ("left person", "the Bright one", "stop sign", "lower BOTTOM", "in the middle"):
        assert has_direction_word(phrase) and cropped(phrase, 15) == 0
    assert not has_direction_word("a person in front")
    assert cropped("a person", 15, ReferringAugmentation(color_jitter=0.0, crop=False)) == 0


def test_a_crop_starts_before_the_centre_of_the_box_in_both_axes():
    """With the centre at x 450, y 30, comparing x with the top or y with the left would let tops beyond 30 pass."""
    image = ramp(600, 400)
    augment = ReferringAugmentation(num_scales=1, color_jitter=0.0)
    origins = []
    for seed in range(120):
        sample = augment(image, "a person", (400, 20, 500, 40), None, generator(seed))
        if is_cropped(picture_of(sample), image):
            red, green, _ = picture_of(sample).getpixel((0, 0))
            origins.append((red / 255 * 599, green / 255 * 399))
    x, y = np.array(origins).T
    assert len(origins) > 30 and y.max() < 30 + 2 and x.max() < 450 + 2
    assert x.max() > 100  # windows right of the left edge, in which a swapped comparison would find nothing


def test_a_crop_keeps_part_of_the_box():
    """Windows start before the centre of this small box at the far corner, but few reach it."""
    image = ramp(600, 400)
    augment = ReferringAugmentation(color_jitter=0.0)
    crops = 0
    for seed in range(120):
        sample = augment(image, "a dot", (580, 380, 592, 392), None, generator(seed))
        x0, y0, x1, y1 = sample.box_xyxy
        assert x1 > x0 and y1 > y0
        assert x0 >= 0 and x1 <= sample.canvas.width + 0.5 and y1 <= sample.canvas.height + 0.5
        crops += is_cropped(picture_of(sample), image)
    assert crops > 10


def test_a_box_without_area_is_never_cropped():
    image = ramp(600, 400)
    for seed in range(40):
        sample = ReferringAugmentation()(image, "a dot", (300, 200, 300, 210), None, generator(seed))
        assert not is_cropped(picture_of(sample), image)


@pytest.mark.parametrize("stem", ["coffee_210x140", "astronaut_150x201"])
def test_cropping_while_resizing_is_resizing_then_cropping(stem):
    """Pixels to the rounding of 8 bits, mask exactly; the reference computes every step in full."""
    image = Image.open(FIXTURES / f"{stem}.png").convert("RGB")
    mask = (np.asarray(image.convert("L")) > 100).astype(np.uint8)
    ratio = 500 / min(image.size)
    width, height = round(image.width * ratio), round(image.height * ratio)
    window = (31, 7, 31 + 431, 7 + 467)
    box = (10.0, 5.0, 100.0, 70.0)
    frame = _Frame.of_picture((image.height, image.width), box, mask).resized(ratio, window)
    frame = frame.resized(352 / max(frame.size))
    pixels = _resized(_cropped(image, (height, width), window), frame.size, exact=True)
    full = image.resize((width, height), Image.Resampling.BILINEAR).crop(window)
    final = (round(467 * 352 / 467), round(431 * 352 / 467))
    expected = np.asarray(full.resize(final[::-1], Image.Resampling.BILINEAR), dtype=np.int16)
    difference = np.abs(pixels.permute(1, 2, 0).numpy() - expected)
    assert difference.max() <= 2 and (difference > 0).mean() < 0.2
    nearest = interpolate(torch.from_numpy(mask)[None, None].float(), size=(height, width), mode="nearest")
    nearest = interpolate(nearest[..., 7 : 7 + 467, 31 : 31 + 431], size=final, mode="nearest")
    np.testing.assert_array_equal(frame.sampled(mask), nearest[0, 0].numpy())
    shifted = np.array(box) * ratio - [31, 7, 31, 7]
    expected_box = np.clip(shifted, 0, [431, 467, 431, 467]) * 352 / 467
    np.testing.assert_allclose(frame.box_xyxy, expected_box)


@pytest.mark.parametrize("stem", ["coffee_210x140", "astronaut_150x201", "chelsea_121x121"])
def test_resizing_by_torch_is_resizing_by_pillow(stem):
    """But for a level (seldom two) of 255 in a few values of a hundred."""
    image = Image.open(FIXTURES / f"{stem}.png").convert("RGB")
    for factor in (0.4, 0.7, 0.8, 1.3, 1.83):
        size = (round(image.height * factor), round(image.width * factor))
        ours, pillows = (_resized(image, size, exact).to(torch.int16) for exact in (False, True))
        assert ours.shape == (3, *size)
        difference = (ours - pillows).abs()
        assert difference.max() <= 2 and difference.float().mean() < 0.1


@pytest.mark.parametrize(
    ("image_size", "num_scales", "smallest"), [(384, 7, 192), (384, 6, 224), (384, 1, 384), (64, 7, 32)]
)
def test_scales(image_size, num_scales, smallest):
    augment = ReferringAugmentation(image_size, num_scales=num_scales, color_jitter=0.0)
    samples = [augment(ramp(90, 60), "a", (10, 10, 60, 50), None, generator(seed)) for seed in range(80)]
    assert {max(sample.picture.shape) for sample in samples} == set(range(smallest, image_size + 1, 32))


def test_places_reach_both_ends_of_the_canvas():
    augment = ReferringAugmentation(64, num_scales=1, crop=False, color_jitter=0.0)
    samples = [augment(ramp(64, 60), "a", (10, 10, 60, 50), None, generator(seed)) for seed in range(80)]
    assert {sample.canvas.top for sample in samples} == {0, 1, 2, 3, 4}
    assert {sample.canvas.left for sample in samples} == {0}


def test_colour_steps(monkeypatch):
    """Eight times in ten, each of the three once, in any order, by factors over the whole range, as Pillow does it."""
    plans, draw = [], ReferringAugmentation._draw_colours
    monkeypatch.setattr(
        ReferringAugmentation, "_draw_colours", lambda self, draws: plans.append(draw(self, draws)) or plans[-1]
    )
    augment = ReferringAugmentation(48, **{**STILL, "color_jitter": 0.4})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    enhancers = {_black: ImageEnhance.Brightness, _mean_grey: ImageEnhance.Contrast, _grey: ImageEnhance.Color}
    for seed in range(300):
        sample, expected = augment(image, "a", (1, 1, 9, 9), None, generator(seed)), image
        for reference, factor in plans[-1]:
            expected = enhancers[reference](expected).enhance(factor)
        difference = np.abs(np.asarray(picture_of(sample), np.int16) - np.asarray(expected, np.int16))
        # Equal; but a Pillow compiled with fused multiply-adds may cut off elsewhere now and then.
        assert difference.max() <= 1 and difference.mean() < 1e-3
    orders = [tuple(reference for reference, _ in plan) for plan in plans if plan]
    assert 220 < len(orders) < 260 and len(set(orders)) == 6
    assert all(set(order) == set(enhancers) for order in orders)
    factors = np.array([factor for plan in plans for _, factor in plan])
    assert 0.6 <= factors.min() < 0.62 and 1.38 < factors.max() <= 1.4


def test_blur_is_a_choice():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))

    def contrasts(blur):
        augment = ReferringAugmentation(32, **STILL, blur=blur)
        samples = [augment(image, "a", (1, 1, 9, 9), None, generator(seed)) for seed in range(40)]
        return [np.asarray(picture_of(sample)).std() for sample in samples]

    sharp = np.asarray(image).std()
    assert contrasts(False) == [sharp] * 40
    assert 10 < sum(contrast < 0.99 * sharp for contrast in contrasts(True)) < 30


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_any_mode_becomes_rgb(mode):
    image = ramp(40, 30).convert(mode)
    sample = TrainingTransform(32, **STILL)(image, "a", (1, 1, 9, 9))
    expected = TrainingTransform(32, **STILL)(image.convert("RGB"), "a", (1, 1, 9, 9))
    assert torch.equal(sample["pixel_values"], expected["pixel_values"])


def test_16_bit_pictures_are_not_clipped():
    deep = Image.fromarray(np.array([[0, 65535], [32896, 257]], np.uint16))
    sample = ReferringAugmentation(2, **STILL)(deep, "a", (0, 0, 1, 1))
    assert sample.picture[0].tolist() == [[0, 255], [128, 1]]


def test_pictures_are_turned_the_right_way_up():
    """As in evaluation, box and mask are those of the upright picture."""
    upright, mask = scene(30, 40, (2, 3, 20, 11))
    stored = upright.transpose(Image.Transpose.ROTATE_90)  # orientation 6: to be shown turned by 90 degrees clockwise
    stored.getexif()[0x0112] = 6
    transform = TrainingTransform(32, **STILL)
    turned, expected = (transform(image, "a", (2, 3, 20, 11), mask) for image in (stored, upright))
    assert torch.equal(turned["pixel_values"], expected["pixel_values"])
    assert torch.equal(turned["mask_labels"], expected["mask_labels"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ReferringAugmentation(num_scales=0), "at least 1, not 384 and 0"),
        (lambda: ReferringAugmentation(color_jitter=1.5), "between 0 and 1, not 1.5"),
        (lambda: TrainingTransform()(ramp(9, 9), "a", (1, 2, 3)), "four values"),
        (
            lambda: TrainingTransform()(ramp(9, 8), "a", (1, 2, 3, 4), np.ones((9, 8))),
            r"\(9, 8\), the picture \(8, 9\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
