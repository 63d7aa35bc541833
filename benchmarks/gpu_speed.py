# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures and phrases per second on an accelerator, as a share of its own matrix-product speed.

    python benchmarks/gpu_speed.py [--size base large] [--batch 1 8 64] [--task grounding] [--attention sdpa]
        [--compile default max-autotune] [--phrases 64]

Each row is a forward pass in bfloat16 over so many pictures with a ten-word phrase each, or, with `--phrases`, over so
many phrases about one picture. The product peak is measured first, in the same dtype, with a large square product, and
the share counts the products of the encoder (and of the mask head, if there is one) alone. `max-autotune` and
`reduce-overhead` record CUDA graphs, which is what a small batch needs. Training steps: `training_speed.py`.

It runs on a CPU too, to be tried: `--device cpu --size tiny --batch 1 --dtype float32`.
"""

import statistics

import torch
from measuring import (
    PHRASE_TOKENS,
    SIZES,
    TASKS,
    PeakMemory,
    forward_gflop,
    interleaved,
    machine,
    make_inputs,
    parser_of,
    print_header,
    print_row,
    product_gflops,
)

from oneref_hf import OneRefConfig
from oneref_hf.modeling_oneref import answer_phrases


def build(options, size: str):
    config = OneRefConfig(**SIZES[size])
    config._attn_implementation = options.attention
    with torch.device(options.device):
        model = TASKS[options.task](config).eval()
    return model.to(getattr(torch, options.dtype))


def make_work(model, variant, rows: int, about_one_picture: bool):
    inputs = make_inputs(rows, PHRASE_TOKENS, num_images=1 if about_one_picture else rows)
    del inputs["attention_mask"]  # nothing is padded, so every attention kernel can be used
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    if about_one_picture:
        return lambda: answer_phrases(variant, **inputs, max_tokens_per_forward=64 * 1024)
    return lambda: variant(**inputs)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["base", "large"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--phrases", type=int, nargs="*", default=[64], help="about one picture")
    parser.add_argument("--task", choices=TASKS, default="grounding")
    parser.add_argument("--attention", default="sdpa", help="sdpa, flash_attention_2, flex_attention or eager")
    parser.add_argument("--compile", nargs="*", metavar="MODE", default=[], help="modes of torch.compile, as well")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.set_defaults(rounds=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peak = product_gflops(getattr(torch, options.dtype), options.device)
    print(f"{machine(options.device)}; product peak in {options.dtype}: {peak / 1000:.1f} TFLOP/s")
    print_header("size", "variant", "pictures", "phrases", "ms", "phrases/s", "of peak", "memory, MB")
    for size in options.size:
        model = build(options, size)
        variants = {options.attention: model}
        for mode in options.compile:
            variants[f"{options.attention}, {mode}"] = torch.compile(model, mode=mode, dynamic=False)
        for rows, about_one_picture in [(n, False) for n in options.batch] + [(n, True) for n in options.phrases]:
            for name, variant in variants.items():
                torch.compiler.reset()  # or else PyTorch gives up after a few shapes and compiles no more
                work = make_work(model, variant, rows, about_one_picture)
                memory = PeakMemory(options.device)
                interleaved({name: work}, 2, options.device)  # compiles, and fills the caches
                with memory:
                    times = interleaved({name: work}, options.rounds, options.device, warm_up=False)[name]
                took = statistics.median(times)
                gflop = forward_gflop(options.task, SIZES[size], rows)
                print_row(
                    size,
                    name,
                    1 if about_one_picture else rows,
                    rows,
                    f"{1000 * took:.1f}",
                    f"{rows / took:.1f}",
                    f"{gflop / took / peak:.0%}",
                    f"{memory.megabytes:.0f}",
                )


if __name__ == "__main__":
    main()
