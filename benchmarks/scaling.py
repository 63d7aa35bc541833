# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""How time and memory of an answer grow: measured points beside the expected law, as a table and as a plot.

    python benchmarks/scaling.py [--size base] [--task grounding] [--output docs/images/scaling.png]

One of four things grows at a time, from one picture of 384 pixels and one phrase of 12 tokens: the side of the
picture, the length of the phrase, the number of pictures in a batch, and the number of phrases about one picture,
which `answer_phrases` takes in parts, here of 8 (by default of 27). The laws have no constant but one speed:

- time: the floating-point operations of the matrix products, at the speed of the starting point;
- memory beyond the weights: two feed-forward tensors and three streams, for all positions in the model at once.

A plot needs matplotlib.
"""

import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import (
    IMAGE_SIZE,
    PATCH_SIZE,
    PHRASE_TOKENS,
    SIZES,
    TASKS,
    PeakMemory,
    fail,
    forward_gflop,
    interleaved,
    machine,
    make_inputs,
    parser_of,
    print_header,
    print_row,
)

from oneref_hf import OneRefConfig
from oneref_hf.modeling_oneref import answer_phrases


MAX_TOKENS = 8 * 590  # of `answer_phrases`


@dataclass(frozen=True)
class Case:
    """What goes through the model."""

    image_size: int = IMAGE_SIZE
    phrase_tokens: int = PHRASE_TOKENS
    batch: int = 1
    phrases: int = 1

    def run(self, model):
        rows, pictures = max(self.batch, self.phrases), self.batch
        inputs = make_inputs(rows, self.phrase_tokens, self.phrase_tokens, self.image_size, pictures)
        del inputs["attention_mask"]  # nothing is padded
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        if self.phrases > 1:
            return lambda: answer_phrases(model, **inputs, max_tokens_per_forward=MAX_TOKENS)
        return lambda: model(**inputs, interpolate_pos_encoding=self.image_size != IMAGE_SIZE)

    def gflop(self, size: dict[str, int], task: str) -> float:
        rows = max(self.batch, self.phrases)
        return forward_gflop(task, size, rows, self.phrase_tokens, self.image_size)

    @property
    def positions(self) -> int:
        """Patches and words that are in the model at once."""
        tokens = 1 + (self.image_size // PATCH_SIZE) ** 2 + self.phrase_tokens
        return tokens * (self.batch if self.phrases == 1 else min(self.phrases, MAX_TOKENS // tokens))

    def megabytes(self, size: dict[str, int], bytes_per_number: int) -> float:
        """What the law says of the encoder; masks come on top."""
        return self.positions * (2 * size["intermediate_size"] + 3 * size["hidden_size"]) * bytes_per_number / 1e6


SWEEPS = {
    "side of the picture, pixels": [Case(image_size=side) for side in (128, 192, 256, 384, 512, 640)],
    "length of the phrase, tokens": [Case(phrase_tokens=count) for count in (4, 12, 32, 64, 128, 256)],
    "pictures in a batch": [Case(batch=count) for count in (1, 2, 4, 8)],
    "phrases about a picture": [Case(phrases=count) for count in (1, 4, 8, 16, 24)],
}
FIELDS = dict(zip(SWEEPS, ("image_size", "phrase_tokens", "batch", "phrases")))


def measure(model, sweeps: dict[str, list[Case]], rounds: int, device: str) -> dict[Case, tuple[float, float]]:
    """Median seconds and peak megabytes of every case, the small before the large."""
    cases = sorted({case for cases in sweeps.values() for case in cases}, key=lambda case: case.positions)
    functions = {case: case.run(model) for case in cases}
    with torch.inference_mode():
        functions[cases[0]]()  # warms up
        memory, megabytes = PeakMemory(device), {}
        for case in cases:
            with memory:
                functions[case]()
            megabytes[case] = memory.megabytes
    times = interleaved(functions, rounds, device, warm_up=False)
    return {case: (statistics.median(times[case]), megabytes[case]) for case in cases}


def plot(rows: dict[str, list[tuple]], title: str, output: Path) -> None:
    """`rows` holds (value, seconds, seconds by the law, megabytes, megabytes by the law) for each sweep."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(rows), figsize=(3.4 * len(rows), 5.4), squeeze=False, layout="constrained")
    for column, (sweep, points) in enumerate(rows.items()):
        value, *measured = zip(*sorted(points))
        units = ((*measured[:2], "seconds"), (*measured[2:], "MB beyond the weights"))
        for row, (found, law, unit) in enumerate(units):
            axis = axes[row, column]
            axis.plot(value, law, color="tab:orange", label="law")
            axis.plot(value, found, "o", color="tab:blue", label="measured")
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
            axis.set_xlabel(sweep if row == 1 else None)
            axis.set_ylabel(unit if column == 0 else None)
            axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.suptitle(title)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.{os.getpid()}{output.suffix}")
    figure.savefig(partial, dpi=110)
    partial.replace(output)


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--task", choices=TASKS, default="grounding")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="a .png, .svg or .pdf for the plot")
    parser.set_defaults(rounds=2)
    options = parser.parse_args()
    if options.output is not None and options.output.suffix not in (".png", ".svg", ".pdf"):
        fail(f"The plot is a .png, .svg or .pdf, not '{options.output}'.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    size = SIZES[options.size]
    model = TASKS[options.task](OneRefConfig(**size)).eval().to(options.device, dtype)
    found = measure(model, SWEEPS, options.rounds, options.device)
    gflops = Case().gflop(size, options.task) / found[Case()][0]

    title = f"{options.size}, {options.task}, {options.dtype}, {machine(options.device)}"
    print(f"{title}; {gflops:.0f} GFLOP/s at the starting point")
    print_header("what grows", "to", "seconds", "law", "MB", "law")
    rows = {sweep: [] for sweep in SWEEPS}
    for sweep, cases in SWEEPS.items():
        for case in cases:
            value, (seconds, megabytes) = getattr(case, FIELDS[sweep]), found[case]
            law = case.gflop(size, options.task) / gflops, case.megabytes(size, dtype.itemsize)
            rows[sweep].append((value, seconds, law[0], megabytes, law[1]))
            print_row(sweep, value, f"{seconds:.2f}", f"{law[0]:.2f}", f"{megabytes:.0f}", f"{law[1]:.0f}")
    if options.output is not None:
        plot(rows, title, options.output)
        print(f"written: {options.output}")


if __name__ == "__main__":
    main()
