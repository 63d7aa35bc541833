# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Boxes and phrases for pictures without annotations, from what a detector finds (the paper's "unsupervised" rows).

A phrase must mean one object, so it says the class and, where several of that class are there, what tells this one
from the others: its place from left to right, from top to bottom, or its size. An object that none of these tells
apart clearly gets no phrase. (The idea is Pseudo-Q's, arXiv 2203.08481, without its attributes and relations.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


# Two objects are told apart by a property if it differs by this share of the picture's side, or of the larger area.
_CLEARLY = 0.1


@dataclass(frozen=True)
class Detection:
    """`box` is x0, y0, x1, y1 in pixels, `score` in [0, 1]."""

    label: str
    score: float
    box: tuple[float, float, float, float]


def pseudo_phrases(detections: Sequence[Detection], size: tuple[int, int]) -> list[tuple[str, Detection]]:
    """Every phrase that means exactly one of the detections, with it.

    Args:
        detections: of one picture, duplicates removed (`without_duplicates`).
        size: `(height, width)` of the picture in pixels.
    """
    height, width = size
    by_label: dict[str, list[Detection]] = {}
    for detection in detections:
        by_label.setdefault(detection.label, []).append(detection)
    phrases = []
    for label, alike in by_label.items():
        if len(alike) == 1:
            phrases.append((f"the {label}", alike[0]))
            continue
        for words, measure, margin in (
            (("{} on the left", "{} on the right"), lambda d: (d.box[0] + d.box[2]) / 2, _CLEARLY * width),
            (("{} at the top", "{} at the bottom"), lambda d: (d.box[1] + d.box[3]) / 2, _CLEARLY * height),
            (("smallest {}", "biggest {}"), _area, _CLEARLY * max(map(_area, alike))),
        ):
            ranked = sorted(alike, key=measure)
            for word, first, second in ((words[0], *ranked[:2]), (words[1], *ranked[:-3:-1])):
                if abs(measure(first) - measure(second)) >= margin:
                    phrases.append((f"the {word.format(label)}", first))
    return phrases


def without_duplicates(detections: Sequence[Detection], threshold: float = 0.5) -> list[Detection]:
    """The best of all detections of a class that overlap by more than `threshold` (IoU), best first."""
    kept: list[Detection] = []
    for detection in sorted(detections, key=lambda d: -d.score):
        if all(detection.label != other.label or _iou(detection, other) <= threshold for other in kept):
            kept.append(detection)
    return kept


def _area(detection: Detection) -> float:
    x0, y0, x1, y1 = detection.box
    return max(x1 - x0, 0) * max(y1 - y0, 0)


def _iou(one: Detection, other: Detection) -> float:
    from_left, from_top = max(one.box[0], other.box[0]), max(one.box[1], other.box[1])
    to_right, to_bottom = min(one.box[2], other.box[2]), min(one.box[3], other.box[3])
    shared = max(to_right - from_left, 0) * max(to_bottom - from_top, 0)
    union = _area(one) + _area(other) - shared
    return shared / union if union else 0.0
