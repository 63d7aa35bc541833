# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What one MRefM training sample costs on one core, beside the original's figures scaled to this machine.

    python benchmarks/data_pipeline.py

The original needed 11.5 ms for transform, patch mask and relation labels (a 600 x 400 photograph at 384 px) and 6 ms
for the text, on one core of a machine on which two cores multiplied float32 matrices of 2048 x 768 and 768 x 3072 at
155 GFLOP/s. The same product here gives the scale. Times are means over many samples, because half of them are
cropped; the best of several rounds counts. Run it on an idle machine: other work slows both sides, unequally.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import XLMRobertaTokenizer

from oneref_hf import OneRefImageProcessorPil, OneRefProcessor
from oneref_hf.data.augmentation import TrainingTransform
from oneref_hf.data.masking import ReferringTextMasker, dynamic_image_mask, visual_relation_labels


FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
IMAGE_SIZE, GRID_SIZE = 384, 24
ORIGINAL_MS = {"image": 11.5, "text": 6.0}
ORIGINAL_GFLOPS = 155.0
PRODUCT = (2048, 768, 3072)


def matrix_gflops(threads: int) -> float:
    """The best of a few products."""
    rows, inner, columns = PRODUCT
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    torch.set_num_threads(threads)
    seconds = min(timed(lambda: left @ right) for _ in range(10))
    torch.set_num_threads(1)
    return 2 * rows * inner * columns / seconds / 1e9


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def load_tokenizer() -> XLMRobertaTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(FIXTURES / "beit3_partial.spm", Path(folder) / "sentencepiece.bpe.model")
        return XLMRobertaTokenizer.from_pretrained(folder)


class Steps:
    """One sample's work, step by step, over a photograph and the phrases of the test fixtures."""

    def __init__(self):
        self.image = Image.open(FIXTURES / "coffee_210x140.png").convert("RGB").resize((600, 400))
        self.box = (120, 40, 420, 320)
        self.mask = np.zeros((400, 600), np.uint8)
        self.mask[40:320, 120:420] = 1
        self.box_labels = torch.tensor([0.45, 0.5, 0.5, 0.45])
        self.transform = TrainingTransform(IMAGE_SIZE, num_scales=6, for_visual_tokens=True)
        self.rows = json.loads((FIXTURES / "text_masking.json").read_text())["rows"]
        tokenizer = load_tokenizer()
        self.processor = OneRefProcessor(OneRefImageProcessorPil(), tokenizer)
        self.masker = ReferringTextMasker(tokenizer)
        self.generator = torch.Generator().manual_seed(0)

    def augment(self, index: int) -> None:
        self.transform(self.image, "a person", self.box, self.mask, self.generator)

    def mask_patches(self, index: int) -> None:
        dynamic_image_mask(self.box_labels, GRID_SIZE, generator=self.generator)

    def label_relations(self, index: int) -> None:
        visual_relation_labels(self.box_labels, GRID_SIZE)

    def mask_text(self, index: int) -> None:
        row = self.rows[index % len(self.rows)]
        input_ids = self.processor(text=row["text"])["input_ids"][0]
        self.masker(input_ids, *self.masker.locate(input_ids, row["subject"], row["object"]), self.generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="samples per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the best counts")
    options = parser.parse_args()

    steps = Steps()
    functions = {
        "augment, normalise, pad": steps.augment,
        "patch mask": steps.mask_patches,
        "relation labels": steps.label_relations,
        "tokenise and mask text": steps.mask_text,
    }
    best = dict.fromkeys(functions, float("inf"))
    gflops = 0.0
    for _ in range(options.rounds):
        gflops = max(gflops, matrix_gflops(threads=2))
        for name, function in functions.items():
            seconds = timed(lambda function=function: [function(index) for index in range(options.samples)])
            best[name] = min(best[name], 1000 * seconds / options.samples)

    *image, text = best.values()
    scale = ORIGINAL_GFLOPS / gflops
    lines = [(name, ms, None) for name, ms in best.items()]
    lines += [("image part", sum(image), ORIGINAL_MS["image"]), ("text part", text, ORIGINAL_MS["text"])]
    lines += [("whole sample", sum(best.values()), sum(ORIGINAL_MS.values()))]
    print(f"float32 product {' x '.join(map(str, PRODUCT))} on two cores: {gflops:.0f} GFLOP/s")
    print(f"{'step':<26}{'ms':>8}{'original':>10}{'scaled':>9}{'ratio':>8}")
    for name, ms, original in lines:
        compared = (
            "" if original is None else f"{original:>10.1f}{original * scale:>9.1f}{ms / original / scale:>8.2f}"
        )
        print(f"{name:<26}{ms:>8.2f}{compared}")


if __name__ == "__main__":
    main()
