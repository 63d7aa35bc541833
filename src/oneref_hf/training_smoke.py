# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What a smoke run trains on, made in memory: pictures of a coloured square, and a vocabulary that can name it."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageDraw

from .image_processing_pil_oneref import OneRefImageProcessorPil
from .processing_oneref import OneRefProcessor


COLOURS = ("red", "green", "blue", "yellow", "white")
_NUMBER = {"train": 48, "val": 10}
_HEIGHT, _WIDTH = 60, 80


def smoke_processor(image_size: int, max_text_length: int) -> OneRefProcessor:
    """A processor with a vocabulary of a few words."""
    from transformers import XLMRobertaTokenizer

    words = [f"▁{word}" for word in ("the", "square", "box", *COLOURS)]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *words, "▁", *map(chr, range(ord("a"), ord("z") + 1))]
    tokenizer = XLMRobertaTokenizer(vocab=[(piece, -float(rank)) for rank, piece in enumerate([*pieces, "<mask>"])])
    tokenizer.model_max_length = max_text_length
    return OneRefProcessor(OneRefImageProcessorPil(size={"height": image_size, "width": image_size}), tokenizer)


def smoke_records(split: str):
    """Records of squares on grey, a `datasets.Dataset` that is the same in every run."""
    from datasets import Dataset

    from .data.records import make_record, record_features

    rows = [_record(random.Random(f"{split}{number}"), f"{split}{number}") for number in range(_NUMBER[split])]
    return Dataset.from_list(
        [make_record(row, default_id="", default_source="smoke") for row in rows], features=record_features()
    )


def _record(draw: random.Random, name: str) -> dict:
    colour, side = draw.choice(COLOURS), draw.randrange(20, 40)
    x, y = draw.randrange(_WIDTH - side), draw.randrange(_HEIGHT - side)
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), "gray")
    ImageDraw.Draw(picture).rectangle((x, y, x + side - 1, y + side - 1), fill=colour)
    file = io.BytesIO()
    picture.save(file, "PNG")
    x1, y1 = x + side, y + side
    return {
        "id": name,
        "image": {"path": None, "bytes": file.getvalue()},
        "phrase": f"the {colour} {draw.choice(('square', 'box'))}",
        "box": [x, y, x1, y1],
        "segmentation": [[x, y, x1, y, x1, y1, x, y1]],
        "semantic_relation_labels": [draw.random() for _ in range(62)],
        "height": _HEIGHT,
        "width": _WIDTH,
    }
