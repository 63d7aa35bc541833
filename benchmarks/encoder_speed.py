# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Time of one forward pass against the original's compute, as ratios measured in one run.

    pip install --no-deps torchscale==0.3.0
    python benchmarks/encoder_speed.py [--size base] [--batch 1 4] [--dtype float32 bfloat16] [--compile] [--rounds 7]

The yardstick is what the original does: BEiT-3's encoder from torchscale, in float32, every phrase padded to 64
tokens, with OneRef's box head on top. Ours gets the same pictures and a ten-word phrase, padded to the longest of the
batch. Both run in turn, round by round, and the ratio is taken within each round; the table shows the median. The
machine's own matrix-product speed in each dtype is printed too, since it bounds what any implementation can reach.
"""

import argparse
import statistics
import time

import torch
from torch import nn
from torchscale_reference import build_torchscale_beit3, run_torchscale_beit3

from oneref_hf import OneRefConfig, OneRefForGrounding
from oneref_hf.modeling_oneref import OneRefBoxHead


SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
PHRASE_TOKENS = 12  # ten words, BOS and EOS
ORIGINAL_TOKENS = 64


class OriginalGrounding(nn.Module):
    """The original's REC forward pass: torchscale's encoder, both projections of the whole sequence, the box head."""

    def __init__(self, config: OneRefConfig, size: dict[str, int]):
        super().__init__()
        self.encoder = build_torchscale_beit3(**size)
        self.vision_head = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.language_head = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.box_head = OneRefBoxHead(config)
        self.num_vision = (config.image_size // config.patch_size) ** 2 + 1

    def forward(self, pixel_values, input_ids, attention_mask):
        hidden_states = run_torchscale_beit3(self.encoder, pixel_values, input_ids, attention_mask)
        vision, text = hidden_states[:, : self.num_vision], hidden_states[:, self.num_vision :]
        patches = nn.functional.normalize(self.vision_head(vision), dim=-1)[:, 1:]
        phrase = nn.functional.normalize(self.language_head(text), dim=-1)[:, 0]
        similarity = torch.matmul(patches, phrase[..., None]).squeeze(-1)
        return self.box_head(vision[:, 1:], similarity)


def make_inputs(batch_size: int, text_length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.full((batch_size, text_length), 1)
    input_ids[:, :PHRASE_TOKENS] = torch.randint(4, 64000, (batch_size, PHRASE_TOKENS), generator=generator)
    return {
        "pixel_values": torch.randn(batch_size, 3, 384, 384, generator=generator),
        "input_ids": input_ids,
        "attention_mask": (torch.arange(text_length) < PHRASE_TOKENS).long().expand(batch_size, -1).contiguous(),
    }


def seconds(function, *args, **kwargs) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        function(*args, **kwargs)
    return time.perf_counter() - start


def product_gflops(dtype: torch.dtype, rows: int = 2048, repeats: int = 15) -> float:
    """GFLOP/s of the feed-forward product of the base model, the best of a few."""
    inputs, weight = torch.randn(rows, 768).to(dtype), torch.randn(3072, 768).to(dtype)
    best = min(seconds(nn.functional.linear, inputs, weight) for _ in range(repeats))
    return 2 * rows * 768 * 3072 / best / 1e9


def forward_gflop(size: dict[str, int], batch_size: int, text_length: int) -> float:
    """Floating-point operations of the encoder's matrix products, in 1e9."""
    tokens, width = (384 // 16) ** 2 + 1 + text_length, size["hidden_size"]
    per_token = 4 * width**2 + 2 * width * size["intermediate_size"]
    attention = 2 * tokens * width
    return 2 * batch_size * tokens * size["num_hidden_layers"] * (per_token + attention) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of ours")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    size = SIZES[args.size]
    config = OneRefConfig(**size)
    original = OriginalGrounding(config, size).eval()
    peaks = {name: product_gflops(getattr(torch, name)) for name in args.dtype}
    print(f"{torch.backends.cpu.get_cpu_capability()}, {args.threads} threads; product peak: ", end="")
    print(", ".join(f"{name} {peak:.0f} GFLOP/s" for name, peak in peaks.items()))
    print("| batch | ours | seconds | original, seconds | ratio (min-max) | GFLOP/s | of peak |")
    print("|---|---|---|---|---|---|---|")
    for name in args.dtype:
        model = OneRefForGrounding(config).eval().to(getattr(torch, name))
        variants = {name: model}
        if args.compile:
            variants[f"{name}, compiled"] = torch.compile(model)
        for label, variant in variants.items():
            for batch_size in args.batch:
                theirs, ours = make_inputs(batch_size, ORIGINAL_TOKENS), make_inputs(batch_size, PHRASE_TOKENS)
                rounds = []
                for index in range(args.rounds + 1):
                    pair = seconds(original, **theirs), seconds(variant, **ours)
                    if index > 0:  # the first round warms up and compiles
                        rounds.append(pair)
                ratios = sorted(their / our for their, our in rounds)
                our = statistics.median(pair[1] for pair in rounds)
                their = statistics.median(pair[0] for pair in rounds)
                speed = forward_gflop(size, batch_size, PHRASE_TOKENS) / our
                print(
                    f"| {batch_size} | {label} | {our:.2f} | {their:.2f} | {statistics.median(ratios):.2f} "
                    f"({ratios[0]:.2f}-{ratios[-1]:.2f}) | {speed:.0f} | {speed / peaks[name]:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
