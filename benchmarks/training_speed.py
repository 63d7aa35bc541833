# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Samples per second of training steps: REC, and the image and text steps of MRefM.

    python benchmarks/training_speed.py [--size base] [--batch 4] [--dtype float32 bfloat16] [--rounds 5] [--compile]

The yardstick is the same step in float32 as the original runs it: every phrase padded to 64 tokens, attention spelled
out. Ours has a ten-word phrase padded to the longest of the batch and SDPA. A step is forward, backward and AdamW, and
for the image step the visual tokens, too. Both run in turn, round by round; the ratio is taken within each round and
the table shows the median. On a GPU the share of the machine's own bfloat16 matrix-product speed is shown as well
(MFU); the operations counted are the encoder's matrix products, three times those of the forward pass.
"""

import argparse
import statistics
import time

import torch

from oneref_hf import OneRefConfig, OneRefForGrounding, OneRefForPreTraining, VqkdConfig, VqkdModel
from oneref_hf.recipes import MODEL_SIZES


SIDE, PATCHES = 384, (384 // 16) ** 2
PHRASE_TOKENS, ORIGINAL_TOKENS = 12, 64
LOSSES = {
    "rec": ("box_l1", "box_giou", "similarity_focal", "similarity_dice"),
    "image": ("mim", "similarity_focal", "similarity_dice"),
    "text": ("mlm", "similarity_focal", "similarity_dice"),
}


class Step:
    """One kind of training step on a fixed batch."""

    def __init__(self, kind: str, size: str, batch: int, text_length: int, attention: str, dtype: str, device: str):
        defaults = OneRefConfig().loss_weights
        weights = {name: defaults[name] if name in LOSSES[kind] else 0.0 for name in defaults}
        config = OneRefConfig(**MODEL_SIZES[size], drop_path_rate=0.1, loss_weights=weights)
        config._attn_implementation = attention
        model_class = OneRefForGrounding if kind == "rec" else OneRefForPreTraining
        self.model = model_class(config).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=device != "cpu")
        self.autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == "bfloat16")
        self.inputs = {name: value.to(device) for name, value in make_inputs(kind, batch, text_length).items()}
        self.pictures = self.inputs.pop("pictures", None)
        self.tokenizer = None
        if self.pictures is not None:
            self.tokenizer = VqkdModel(VqkdConfig(image_size=SIDE, patch_size=16)).to(device).eval()
        self.device = device

    def compile(self):
        self.model = torch.compile(self.model)

    def seconds(self) -> float:
        synchronise(self.device)
        start = time.perf_counter()
        inputs = dict(self.inputs)
        if self.tokenizer is not None:
            codes = self.tokenizer.get_codebook_indices(self.pictures)
            inputs["visual_token_labels"] = codes.masked_fill(~inputs["bool_masked_pos"], -100)
        with self.autocast:
            loss = self.model(**inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronise(self.device)
        return time.perf_counter() - start


def make_inputs(kind: str, batch: int, text_length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.full((batch, text_length), 1)
    input_ids[:, :PHRASE_TOKENS] = torch.randint(4, 64000, (batch, PHRASE_TOKENS), generator=generator)
    inputs = {
        "pixel_values": torch.randn(batch, 3, SIDE, SIDE, generator=generator),
        "input_ids": input_ids,
        "attention_mask": (torch.arange(text_length) < PHRASE_TOKENS).long().expand(batch, -1).contiguous(),
        "mask_labels": torch.ones(batch, SIDE, SIDE, dtype=torch.uint8),
    }
    if kind == "rec":
        inputs["box_labels"] = torch.tensor([[0.5, 0.5, 0.4, 0.4]]).expand(batch, -1).contiguous()
    elif kind == "image":
        inputs["pictures"] = torch.rand(batch, 3, SIDE, SIDE, generator=generator)
        inputs["bool_masked_pos"] = torch.rand(batch, PATCHES, generator=generator) < 0.4
    else:
        chosen = (torch.arange(text_length) % 3 == 1) & (torch.arange(text_length) < PHRASE_TOKENS)
        inputs["mlm_labels"] = torch.where(chosen, input_ids, -100)
    return inputs


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def product_flops(device: str) -> float:
    """FLOP/s of a large bfloat16 matrix product, the best of a few."""
    matrix = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)
    best = float("inf")
    for _ in range(20):
        synchronise(device)
        start = time.perf_counter()
        matrix @ matrix
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * 8192**3 / best


def step_flop(size: str, batch: int) -> float:
    sizes, tokens = MODEL_SIZES[size], PATCHES + 1 + PHRASE_TOKENS
    width = sizes["hidden_size"]
    per_token = 4 * width**2 + 2 * width * sizes["intermediate_size"] + 2 * tokens * width
    return 3 * 2 * batch * tokens * sizes["num_hidden_layers"] * per_token


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=MODEL_SIZES, default="base")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    ceiling = product_flops(options.device) if options.device != "cpu" else None
    if ceiling is not None:
        print(f"{torch.cuda.get_device_name()}: matrix product in bfloat16 {ceiling / 1e12:.0f} TFLOP/s")
    print("| step | ours | samples/s | as the original, samples/s | ratio (min-max) | MFU |")
    print("|---|---|---|---|---|---|")
    shared = {"size": options.size, "batch": options.batch, "device": options.device}
    for kind in LOSSES:
        original = Step(kind, text_length=ORIGINAL_TOKENS, attention="eager", dtype="float32", **shared)
        for dtype in options.dtype:
            ours = Step(kind, text_length=PHRASE_TOKENS, attention="sdpa", dtype=dtype, **shared)
            if options.compile:
                ours.compile()
            rounds = [(original.seconds(), ours.seconds()) for _ in range(options.rounds + 2)][2:]  # warm by then
            ratios = sorted(their / our for their, our in rounds)
            their, our = (options.batch / statistics.median(column) for column in zip(*rounds))
            share = "" if ceiling is None else f"{step_flop(options.size, 1) * our / ceiling:.0%}"
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
            print(f"| {kind} | {dtype} | {our:.2f} | {their:.2f} | {spread} | {share} |", flush=True)


if __name__ == "__main__":
    main()
