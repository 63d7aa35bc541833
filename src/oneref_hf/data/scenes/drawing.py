# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Draws scenes: a lit, textured background and objects with edges, shading, patterns and shadows, at any size.

Smooth work on small tiles is left to Pillow, whose loops are quicker than many small arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .objects import COLOURS, Scene, SceneObject
from .shapes import placed_outline


_SUPERSAMPLING = 4
_LIGHTNESS_VARIATION, _HUE_VARIATION = 8, 4  # of 255, either way
_LEAST_CONTRAST = 75  # distance in RGB that a background should keep from every object
_BACKGROUNDS_TRIED = 5
_SHADOW_OPACITY = 107  # of 255
_GRAIN = 2.5  # standard deviation, of 255


@dataclass(frozen=True)
class Drawing:
    """`picture` is RGB; `layers` bool `(N, H, W)`: the whole objects from back to front, hidden parts included."""

    picture: Image.Image
    layers: np.ndarray


def draw_scene(scene: Scene, size: int) -> Drawing:
    """The picture of a scene, its longer side `size` pixels.

    A pixel belongs to the layer of an object if the outline covers at least half of it.
    """
    shape = round(scene.height * size), round(scene.width * size)
    rng = np.random.default_rng(scene.look)
    tones = np.array([COLOURS[placed.colour] for placed in scene.objects])
    shifts = rng.uniform(-_LIGHTNESS_VARIATION, _LIGHTNESS_VARIATION, (len(tones), 1))
    tones = np.clip(tones + shifts + rng.uniform(-_HUE_VARIATION, _HUE_VARIATION, tones.shape), 0, 255)
    angle = rng.uniform(0.2, 0.8) * math.pi
    light = math.cos(angle), -math.sin(angle)  # x, y towards it: always from above
    canvas = _background(rng, shape, light, tones)
    layers = np.stack(
        [
            _paint(canvas, placed, tone.tolist(), rng.uniform(0, math.pi), light, size)
            for placed, tone in zip(scene.objects, tones)
        ]
    )
    # Drawn last, for the number of its values depends on the size.
    grain = rng.standard_normal(shape, dtype=np.float32)[..., None] * _GRAIN
    return Drawing(Image.fromarray(np.clip(np.asarray(canvas) + grain, 0, 255).astype(np.uint8)), layers)


# Background -------------------------------------------------------------------------------------------------------
def _background(
    rng: np.random.Generator, shape: tuple[int, int], light: tuple[float, float], tones: np.ndarray
) -> Image.Image:
    first, second = _background_colours(rng, tones).astype(np.float32)
    scale = max(shape)
    y = ((np.arange(shape[0], dtype=np.float32) + 0.5 - shape[0] / 2) / scale)[:, None]
    x = ((np.arange(shape[1], dtype=np.float32) + 0.5 - shape[1] / 2) / scale)[None]
    angle = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.5:
        ramp = 0.5 + x * math.cos(angle) + y * math.sin(angle)
    else:
        ramp = 1.6 * np.sqrt((x - 0.35 * math.cos(angle)) ** 2 + (y - 0.35 * math.sin(angle)) ** 2)
    ramp = np.clip(ramp, 0, 1)
    brightness = 1 + 0.32 * rng.random() * (x * light[0] + y * light[1]) + _texture(rng, shape, x, y)
    channels = [(start + (stop - start) * ramp) * brightness for start, stop in zip(first.tolist(), second.tolist())]
    return Image.fromarray(np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8))


def _background_colours(rng: np.random.Generator, tones: np.ndarray) -> np.ndarray:
    """Two muted colours `(2, 3)`, as far from the tones of the objects as a few tries give."""
    best, best_contrast = None, -1.0
    for _ in range(_BACKGROUNDS_TRIED):
        hues = rng.uniform(0, 1) + rng.uniform(-0.12, 0.12, 2)
        values = np.clip(rng.uniform(0.42, 0.86) + rng.uniform(-0.14, 0.14, 2), 0.35, 0.9)
        wheel = np.clip(np.abs((hues[:, None] + [0, 2 / 3, 1 / 3]) % 1 * 6 - 3) - 1, 0, 1)
        colours = 255 * values[:, None] * (1 - rng.uniform(0.04, 0.36) * (1 - wheel))
        contrast = np.linalg.norm(colours[:, None] - tones, axis=2).min()
        if contrast > best_contrast:
            best, best_contrast = colours, contrast
        if contrast >= _LEAST_CONTRAST:
            break
    return best


def _texture(rng: np.random.Generator, shape: tuple[int, int], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Relative brightness around 0: clouds, boards, tiles, waves or speckles, over a little unevenness."""
    kind, frequency, angle = rng.integers(5), rng.uniform(5, 11), rng.uniform(0, math.pi)
    clouds = _noise(rng, shape, 5)
    along = (x * math.cos(angle) + y * math.sin(angle)) * frequency
    if kind == 0:
        texture = clouds + 0.5 * _noise(rng, shape, 12)
    elif kind == 1:
        shades = rng.uniform(-1, 1, 16).astype(np.float32)
        gap = np.abs(_fraction(along) - 0.5) > 0.46
        texture = shades[np.floor(along).astype(np.int8)] - 1.5 * gap + 0.4 * _noise(rng, shape, 28)
    elif kind == 2:
        across = (y * math.cos(angle) - x * math.sin(angle)) * frequency
        texture = 0.8 * np.sign((_fraction(along) - 0.5) * (_fraction(across) - 0.5))
    elif kind == 3:
        texture = np.sin(2 * math.pi * (along + 0.25 * clouds))
    else:
        spots = _noise(rng, shape, 28)
        texture = 2.5 * (spots - np.clip(spots, -0.8, 0.8))
    return rng.uniform(0.03, 0.075) * (texture + 0.5 * clouds)


def _noise(rng: np.random.Generator, shape: tuple[int, int], bumps: int) -> np.ndarray:
    """Smooth noise of a standard deviation near 1, float32, with so many bumps along each side."""
    coarse = Image.fromarray(rng.standard_normal((bumps, bumps), dtype=np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _fraction(values: np.ndarray) -> np.ndarray:
    """`values % 1`, which numpy takes many times as long for."""
    return values - np.floor(values)


# Objects ----------------------------------------------------------------------------------------------------------
def _paint(
    canvas: Image.Image,
    placed: SceneObject,
    tone: list[float],
    pattern_angle: float,
    light: tuple[float, float],
    size: int,
) -> np.ndarray:
    """Draws an object with its shadow; returns its mask, bool `(H, W)`."""
    coverage, (left, top) = _coverage(placed, size)
    _cast_shadow(canvas, coverage, (left, top), light, placed.diameter * size, size)
    canvas.paste(_surface(placed, coverage, (left, top), tone, pattern_angle, light, size), (left, top), coverage)
    layer = Image.new("L", canvas.size)
    layer.paste(coverage, (left, top))
    return np.asarray(layer) >= 128


def _coverage(placed: SceneObject, size: int) -> tuple[Image.Image, tuple[int, int]]:
    """How much of every pixel the object covers, 0..255, on the smallest tile; left and top of the tile."""
    parts = [
        (points * size, filled)
        for points, filled in placed_outline(placed.shape, placed.centre, placed.diameter, placed.rotation)
    ]
    corners = np.concatenate([points for points, _ in parts])
    left, top = (math.floor(side) - 1 for side in corners.min(axis=0).tolist())
    right, bottom = (math.ceil(side) + 1 for side in corners.max(axis=0).tolist())
    tile = Image.new("L", ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING))
    draw = ImageDraw.Draw(tile)
    for points, filled in parts:
        # Pillow's pixel (0, 0) has its middle at (0, 0).
        draw.polygon(((points - (left, top)) * _SUPERSAMPLING - 0.5).ravel().tolist(), fill=255 * filled)
    return tile.reduce(_SUPERSAMPLING), (left, top)


def _cast_shadow(canvas, coverage: Image.Image, corner, light, diameter: float, size: int) -> None:
    softness = max(0.016 * size, 1)
    margin = math.ceil(2.5 * softness)
    shadow = Image.new("L", (coverage.width + 2 * margin, coverage.height + 2 * margin))
    shadow.paste(_SHADOW_OPACITY, (margin, margin), coverage)
    length = 0.012 * size + 0.03 * diameter
    place = tuple(round(side - margin - towards * length) for side, towards in zip(corner, light))
    canvas.paste((0, 0, 0), place, shadow.filter(ImageFilter.GaussianBlur(softness)))


def _surface(
    placed: SceneObject, coverage: Image.Image, corner, tone: list[float], pattern_angle: float, light, size: int
) -> Image.Image:
    """The colours of an object on its tile: pattern, light from one side, a bevel and a dark rim."""
    diameter = placed.diameter * size
    x, y = (
        ((np.arange(length, dtype=np.float32) + 0.5 + start) / size - centre) / placed.diameter
        for length, start, centre in zip(coverage.size, corner, placed.centre)
    )
    x, y = x[None], y[:, None]
    relief = coverage.filter(ImageFilter.GaussianBlur(max(0.035 * diameter, 0.6)))
    relief = np.asarray(relief, dtype=np.float32) / 255
    padded = np.pad(relief, 1)
    slope = light[0] * (padded[1:-1, 2:] - padded[1:-1, :-2]) + light[1] * (padded[2:, 1:-1] - padded[:-2, 1:-1])
    bevel = slope * (-65 * (0.035 * diameter + 0.6))
    shading = (1 + 0.16 * (x * light[0] + y * light[1])) * (1 - 0.4 * np.clip((0.86 - relief) / 0.36, 0, 1))
    pattern = 0 if placed.material == "plain" else _pattern(placed.material, x, y, pattern_angle, diameter)
    channels = [
        (level + (other - level) * pattern) * shading + bevel for level, other in zip(tone, _pattern_tone(tone))
    ]
    return Image.fromarray(np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8))


def _pattern(material: str, x: np.ndarray, y: np.ndarray, angle: float, diameter: float) -> np.ndarray:
    """How far the pattern replaces the tone, 0..1; x and y in diameters, `diameter` in pixels for smooth edges."""
    u = x * math.cos(angle) + y * math.sin(angle)
    if material == "striped":
        period, half_width = 0.25, 0.055
        distance = np.abs(_fraction(u / period) - 0.5) * period
    else:
        period, half_width = 0.27, 0.072
        v = y * math.cos(angle) - x * math.sin(angle)
        distance = np.sqrt((_fraction(u / period) - 0.5) ** 2 + (_fraction(v / period) - 0.5) ** 2) * period
    return np.clip((half_width - distance) * diameter + 0.5, 0, 1)


def _pattern_tone(tone: list[float]) -> list[float]:
    """White with a little of the tone, so that the name of the colour still fits; grey on white."""
    if min(tone) > 200:
        return [level * 0.5 for level in tone]
    share = 0.6 if max(tone) < 80 else 0.8
    return [level + (255 - level) * share for level in tone]


__all__ = ["Drawing", "draw_scene"]
