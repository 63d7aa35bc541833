# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Time of one forward pass against the original's compute, as ratios measured in one run.

    pip install --no-deps torchscale==0.3.0
    python benchmarks/encoder_speed.py [--size base] [--task grounding] [--batch 1 4] [--dtype float32 bfloat16]
        [--compile default max-autotune-no-cudagraphs] [--rounds 7]

The yardstick is what the original does: BEiT-3's encoder from torchscale, in float32, every phrase padded to 64
tokens, with OneRef's heads on top. Ours gets the same pictures and a ten-word phrase, padded to the longest of the
batch. All run in turn, round by round, and ratios are taken within each round; the table shows the median.

With `--compile`, Inductor may take the weights for constants, which lets it pack them once (`freezing`).

What bounds any implementation is the machine's own matrix-product speed, measured in each dtype: the last columns give
our share of it, and the ratio at which nothing but our products would be left.
"""

import statistics

import torch
import torch._inductor.config
from measuring import (
    PHRASE_TOKENS,
    SIZES,
    TASKS,
    forward_gflop,
    interleaved,
    machine,
    make_inputs,
    parser_of,
    print_header,
    print_row,
    product_gflops,
    ratio,
)
from torch import nn
from torchscale_reference import build_torchscale_beit3, run_torchscale_beit3

from oneref_hf import OneRefConfig
from oneref_hf.modeling_oneref import OneRefBoxHead


ORIGINAL_TOKENS = 64


class Original(nn.Module):
    """The original's forward pass: torchscale's encoder, both projections of the whole sequence, and the heads.

    That for masks has transposed convolutions, as the original's.
    """

    def __init__(self, config: OneRefConfig, size: dict[str, int], task: str):
        super().__init__()
        self.encoder = build_torchscale_beit3(**size)
        self.vision_head = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.language_head = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.box_head = OneRefBoxHead(config)
        width, self.mask_head = config.hidden_size, None
        if task == "segmentation":
            layers = [[nn.ConvTranspose2d(width, width, 2, 2, bias=False), nn.BatchNorm2d(width)] for _ in range(3)]
            self.mask_head = nn.Sequential(*layers[0], nn.ReLU(), *layers[1], nn.ReLU(), *layers[2])
        self.num_vision = (config.image_size // config.patch_size) ** 2 + 1

    def forward(self, pixel_values, input_ids, attention_mask):
        hidden_states = run_torchscale_beit3(self.encoder, pixel_values, input_ids, attention_mask)
        vision, text = hidden_states[:, : self.num_vision], hidden_states[:, self.num_vision :]
        patches = nn.functional.normalize(self.vision_head(vision), dim=-1)[:, 1:]
        phrase = nn.functional.normalize(self.language_head(text), dim=-1)[:, 0]
        similarity = torch.matmul(patches, phrase[..., None]).squeeze(-1)
        boxes = self.box_head(vision[:, 1:], similarity)
        if self.mask_head is None:
            return boxes
        side = int(similarity.shape[1] ** 0.5)
        features = self.mask_head(vision[:, 1:].mT.unflatten(-1, (side, side)))
        return boxes, torch.einsum("bdhw,bd->bhw", nn.functional.normalize(features, dim=1), phrase)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--task", choices=TASKS, default="grounding")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--compile", nargs="*", metavar="MODE", help="also time torch.compile of ours in these modes")
    parser.set_defaults(rounds=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    if options.compile:
        torch._inductor.config.freezing = True
    size = SIZES[options.size]
    config = OneRefConfig(**size)
    original = Original(config, size, options.task).eval()
    models = {name: TASKS[options.task](config).eval().to(getattr(torch, name)) for name in options.dtype}
    peaks = {name: product_gflops(getattr(torch, name)) for name in options.dtype}
    products = ", ".join(f"{name} {peak:.0f} GFLOP/s" for name, peak in peaks.items())
    print(f"{machine()}; product peak: {products}")
    print_header("batch", "ours", "seconds", "original, seconds", "ratio (min-max)", "GFLOP/s", "of peak", "bound")
    for batch_size in options.batch:
        torch.compiler.reset()  # or else PyTorch gives up after a few shapes and compiles no more
        theirs, ours = make_inputs(batch_size, ORIGINAL_TOKENS), make_inputs(batch_size, PHRASE_TOKENS)
        del ours["attention_mask"]  # nothing is padded, so a compiled model need not be given a mask
        functions = {"original": lambda inputs=theirs: original(**inputs)}
        dtypes = {}
        for dtype, model in models.items():
            variants = {dtype: model}
            for mode in options.compile or []:
                variants[f"{dtype}, compiled ({mode})"] = torch.compile(model, mode=mode, dynamic=False)
            for name, variant in variants.items():
                functions[name], dtypes[name] = lambda model=variant, inputs=ours: model(**inputs), dtype
        times = interleaved(functions, options.rounds)
        gflop = forward_gflop(options.task, size, batch_size)
        for name, dtype in dtypes.items():
            our, their = statistics.median(times[name]), statistics.median(times["original"])
            print_row(
                batch_size,
                name,
                f"{our:.2f}",
                f"{their:.2f}",
                ratio(times["original"], times[name]),
                f"{gflop / our:.0f}",
                f"{gflop / our / peaks[dtype]:.0%}",
                f"{their * peaks[dtype] / gflop:.2f}",
            )


if __name__ == "__main__":
    main()
