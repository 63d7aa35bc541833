# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks share: published sizes, made-up inputs, time, peak memory, and what the machine can do."""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from oneref_hf import OneRefForGrounding, OneRefForSegmentation


SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    # For trying a script out.
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}
TASKS = {"grounding": OneRefForGrounding, "segmentation": OneRefForSegmentation}
IMAGE_SIZE, PATCH_SIZE = 384, 16
PHRASE_TOKENS = 12  # ten words, BOS and EOS
WORDS = range(4, 64000)


def make_inputs(
    batch_size: int,
    text_length: int,
    phrase_tokens: int = PHRASE_TOKENS,
    image_size: int = IMAGE_SIZE,
    num_images: int | None = None,
) -> dict[str, torch.Tensor]:
    """Random pictures, one per phrase by default, and phrases of `phrase_tokens` tokens, padded to `text_length`."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.full((batch_size, text_length), 1)
    words = torch.randint(WORDS.start, WORDS.stop, (batch_size, phrase_tokens), generator=generator)
    input_ids[:, :phrase_tokens] = words
    num_images = batch_size if num_images is None else num_images
    return {
        "pixel_values": torch.randn(num_images, 3, image_size, image_size, generator=generator),
        "input_ids": input_ids,
        "attention_mask": (torch.arange(text_length) < phrase_tokens).long().expand(batch_size, -1).contiguous(),
    }


def encoder_gflop(size: dict[str, int], batch_size: int, text_length: int, image_size: int = IMAGE_SIZE) -> float:
    """Floating-point operations of the encoder's matrix products, in 1e9; a multiplication and an addition are two."""
    patches, width = (image_size // PATCH_SIZE) ** 2, size["hidden_size"]
    tokens = patches + 1 + text_length
    per_token = 4 * width**2 + 2 * width * size["intermediate_size"] + 2 * tokens * width
    embedding = patches * 3 * PATCH_SIZE**2 * width
    return 2 * batch_size * (tokens * size["num_hidden_layers"] * per_token + embedding) / 1e9


def mask_gflop(size: dict[str, int], batch_size: int, image_size: int = IMAGE_SIZE) -> float:
    """Those of the mask head: three products that turn every position into four."""
    patches = (image_size // PATCH_SIZE) ** 2
    return 2 * batch_size * patches * (1 + 4 + 16) * 4 * size["hidden_size"] ** 2 / 1e9


def forward_gflop(
    task: str, size: dict[str, int], batch_size: int, text_length: int = PHRASE_TOKENS, image_size: int = IMAGE_SIZE
) -> float:
    """Those of a model of `TASKS`: encoder and, where it segments, mask head."""
    gflop = encoder_gflop(size, batch_size, text_length, image_size)
    return gflop + (mask_gflop(size, batch_size, image_size) if task == "segmentation" else 0)


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(function: Callable, *args, device: str = "cpu", **kwargs) -> float:
    """Of one call without gradients."""
    synchronise(device)
    start = time.perf_counter()
    with torch.inference_mode():
        function(*args, **kwargs)
    synchronise(device)
    return time.perf_counter() - start


def interleaved(
    functions: dict[str, Callable], rounds: int, device: str = "cpu", warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each function in each round, after a round that warms up: whatever slows the machine slows all."""
    times = {name: [] for name in functions}
    for number in range(-warm_up, rounds):
        for name, function in functions.items():
            took = seconds(function, device=device)
            if number >= 0:
                times[name].append(took)
    return times


def ratio(theirs: list[float], ours: list[float]) -> str:
    """Median, least and greatest of the ratios within the rounds."""
    ratios = sorted(their / our for their, our in zip(theirs, ours))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"


def product_gflops(dtype: torch.dtype, device: str = "cpu", repeats: int = 15) -> float:
    """GFLOP/s of the largest product of the base model, or on an accelerator of a large square one; best of a few."""
    rows, inner, columns = (2048, 768, 3072) if device == "cpu" else (8192, 8192, 8192)
    inputs = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(columns, inner, device=device, dtype=dtype)
    best = min(seconds(nn.functional.linear, inputs, weight, device=device) for _ in range(repeats))
    return 2 * rows * inner * columns / best / 1e9


def machine(device: str = "cpu") -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"


class PeakMemory:
    """The most memory that the body of a `with` needed beyond what was in use when this was made: `megabytes`.

    On an accelerator what PyTorch allocated, on a CPU the resident memory, whose highest mark Linux keeps; elsewhere
    NaN. The allocator keeps a part of what was freed, so measure the small before the large.
    """

    def __init__(self, device: str = "cpu"):
        self.device, self.megabytes = device, float("nan")
        self._before = _resident_bytes("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()

    def __enter__(self):
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        elif _MARK.exists():
            _MARK.write_text("5")  # from now on
        return self

    def __exit__(self, *_):
        peak = _resident_bytes("VmHWM") if self.device == "cpu" else torch.cuda.max_memory_allocated()
        self.megabytes = (peak - self._before) / 1e6


_MARK = Path("/proc/self/clear_refs")  # the highest mark is reset by what is written here


def _resident_bytes(name: str) -> float:
    """Of this process, now (`VmRSS`) or at most (`VmHWM`); NaN where the system does not tell."""
    if not _MARK.exists():
        return float("nan")
    (line,) = re.findall(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(line)


def print_row(*cells) -> None:
    """A row of a Markdown table, at once."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_header(*names: str) -> None:
    print_row(*names)
    print("|" + "---|" * len(names), flush=True)


def parser_of(description: str) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch, on a CPU")
    parser.add_argument("--rounds", type=int, default=5, help="each measured in turn, after one that warms up")
    return parser


def fail(sentence: str) -> None:
    """Ends the script with a sentence for the user."""
    print(sentence, file=sys.stderr)
    raise SystemExit(2)
