# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Samples per second of training steps: REC, and the image and text steps of MRefM.

    python benchmarks/training_speed.py [--size base] [--batch 4] [--dtype float32 bfloat16] [--rounds 5] [--compile]

The yardstick is the same step of the same model as the original runs it: every phrase padded to 64 tokens, attention
spelled out. Ours has a ten-word phrase padded to the longest of the batch, and SDPA. A step is forward, backward and
AdamW, and for the image step the visual tokens, too. All variants run in turn, round by round; ratios are taken within
each round and the table shows their median. The last ratio is against the yardstick in float32, which is the
original's precision.

The matrix products are what a step cannot do without: those of the encoder and of the vocabulary heads three times
(forward and twice backward), those of the visual tokenizer once. The table shows how many of them are done per second,
and the share of what this machine reaches on a large product alone in the same dtype; on a GPU that share is the model
FLOPs utilisation (MFU). bfloat16 is autocast, as in training.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
from measuring import (
    PATCH_SIZE,
    PHRASE_TOKENS,
    SIZES,
    encoder_gflop,
    machine,
    make_inputs,
    parser_of,
    print_header,
    print_row,
    product_gflops,
    ratio,
    synchronise,
)

from oneref_hf import OneRefConfig, OneRefForGrounding, OneRefForPreTraining, VqkdConfig, VqkdModel


ORIGINAL_TOKENS = 64
IMAGE_MASK_RATIO = 0.4
MASKED_WORDS = slice(1, PHRASE_TOKENS, 3)
LOSSES = {
    "rec": ("box_l1", "box_giou", "similarity_focal", "similarity_dice"),
    "image": ("mim", "similarity_focal", "similarity_dice"),
    "text": ("mlm", "similarity_focal", "similarity_dice"),
}


@dataclass(frozen=True)
class Variant:
    """A way to compute a step."""

    ours: bool
    dtype: str

    @property
    def text_length(self) -> int:
        return PHRASE_TOKENS if self.ours else ORIGINAL_TOKENS


class Step:
    """One kind of training step on fixed batches, one model for all variants."""

    def __init__(self, kind: str, options: argparse.Namespace):
        defaults = OneRefConfig().loss_weights
        weights = {name: defaults[name] if name in LOSSES[kind] else 0.0 for name in defaults}
        sizes, side = SIZES[options.size], options.image_size
        config = OneRefConfig(**sizes, image_size=side, drop_path_rate=0.1, loss_weights=weights)
        model_class = OneRefForGrounding if kind == "rec" else OneRefForPreTraining
        self.device = options.device
        self.model = model_class(config).to(self.device).train()
        self.compiled = torch.compile(self.model) if options.compile else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.tokenizer = None
        if kind == "image":
            self.tokenizer = VqkdModel(VqkdConfig(**sizes, image_size=side)).to(self.device).eval()
        self.inputs = {
            length: {name: value.to(self.device) for name, value in labelled_inputs(kind, options, length).items()}
            for length in (PHRASE_TOKENS, ORIGINAL_TOKENS)
        }

    def seconds(self, variant: Variant) -> float:
        self.model.set_attn_implementation("sdpa" if variant.ours else "eager")
        model = self.compiled if variant.ours else self.model
        inputs = dict(self.inputs[variant.text_length])
        pictures = inputs.pop("pictures", None)
        synchronise(self.device)
        start = time.perf_counter()
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=variant.dtype == "bfloat16"):
            if self.tokenizer is not None:
                codes = self.tokenizer.get_codebook_indices(pictures)
                inputs["visual_token_labels"] = codes.masked_fill(~inputs["bool_masked_pos"], -100)
            loss = model(**inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronise(self.device)
        return time.perf_counter() - start


def labelled_inputs(kind: str, options: argparse.Namespace, text_length: int) -> dict[str, torch.Tensor]:
    batch, side = options.batch, options.image_size
    inputs = make_inputs(batch, text_length, image_size=side)
    inputs["mask_labels"] = torch.ones(batch, side, side, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(1)
    if kind == "rec":
        inputs["box_labels"] = torch.tensor([[0.5, 0.5, 0.4, 0.4]]).expand(batch, -1).contiguous()
    elif kind == "image":
        inputs["pictures"] = torch.rand(batch, 3, side, side, generator=generator)
        inputs["bool_masked_pos"] = (
            torch.rand(batch, (side // PATCH_SIZE) ** 2, generator=generator) < IMAGE_MASK_RATIO
        )
    else:
        inputs["mlm_labels"] = torch.full_like(inputs["input_ids"], -100)
        inputs["mlm_labels"][:, MASKED_WORDS] = inputs["input_ids"][:, MASKED_WORDS]
    return inputs


def step_gflop(kind: str, size: str, side: int) -> float:
    """Of one sample's step with the short phrase, in 1e9."""
    sizes, config, patches = SIZES[size], OneRefConfig(**SIZES[size]), (side // PATCH_SIZE) ** 2
    predictions = {
        "rec": 0,
        "image": IMAGE_MASK_RATIO * patches * config.visual_vocab_size,
        "text": len(range(PHRASE_TOKENS)[MASKED_WORDS]) * config.vocab_size,
    }[kind]
    gflop = 3 * (encoder_gflop(sizes, 1, PHRASE_TOKENS, side) + 2 * predictions * config.hidden_size / 1e9)
    return gflop + (encoder_gflop(sizes, 1, 0, side) if kind == "image" else 0)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--step", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    peaks = {dtype: product_gflops(getattr(torch, dtype), options.device) for dtype in options.dtype}
    print(f"{machine(options.device)}; {options.size}, {options.image_size} pixels, batch {options.batch}", end="")
    print(", ours compiled" if options.compile else "", end="; product peak: ")
    print(", ".join(f"{dtype} {peak:.0f} GFLOP/s" for dtype, peak in peaks.items()))
    share = "of product peak" if options.device == "cpu" else "MFU"
    columns = ("samples/s", "padded, eager: samples/s", "ratio (min-max)", "to float32 (min-max)", "GFLOP/s", share)
    print_header("step", "dtype", *columns)
    yardstick = Variant(ours=False, dtype="float32")
    both = [Variant(ours, dtype) for dtype in options.dtype for ours in (False, True)]
    variants = list(dict.fromkeys([yardstick, *both]))
    for kind in options.step:
        torch.compiler.reset()  # or else PyTorch gives up after a few shapes and compiles no more
        step = Step(kind, options)
        times = {variant: [] for variant in variants}
        for number in range(-1, options.rounds):
            for variant in variants:
                took = step.seconds(variant)
                if number >= 0:
                    times[variant].append(took)
        for dtype in options.dtype:
            ours, theirs = times[Variant(True, dtype)], times[Variant(False, dtype)]
            our, their = (options.batch / statistics.median(column) for column in (ours, theirs))
            gflops = step_gflop(kind, options.size, options.image_size) * our
            ratios = ratio(theirs, ours), ratio(times[yardstick], ours)
            print_row(
                kind, dtype, f"{our:.2f}", f"{their:.2f}", *ratios, f"{gflops:.0f}", f"{gflops / peaks[dtype]:.0%}"
            )


if __name__ == "__main__":
    main()
