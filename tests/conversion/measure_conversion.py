# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Measures memory and time of a conversion at full size, from a .pth file and from zip archives.

    python tests/conversion/measure_conversion.py --size base --folder /tmp
    python tests/conversion/measure_conversion.py --size large --folder /tmp --kinds pth

Makes a training checkpoint of random weights with both AdamW moments (base 2.7 GB, large 8.2 GB), converts it in a
process of its own and prints, as JSON, the peak resident memory of that process beside the bound (weights x 1.3 +
600 MB) and its time beside that of a plain copy of the weights (from the page cache to the page cache, unsynced). For
an archive that has to be inflated, the time that nothing but inflating as far as the last weight takes is given too.
Before version 2.7 PyTorch sorted storages as text (0, 1, 10, 100, ...), which puts the last weight near the end of the
file: `deflated_sorted`. CPU seconds are for machines that have something else to do. Everything is deleted at the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


CONVERSION = Path(__file__).parents[2] / "conversion"
sys.path.insert(0, str(CONVERSION))

from oneref_keys import assignments_of  # noqa: E402

from oneref_hf import OneRefConfig, OneRefForGrounding  # noqa: E402


SIZES = {
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
MEMBER = "unc/best_checkpoint.pth"
START_UP = "start_up"  # a conversion of next to nothing
KINDS = ("pth", "stored", "deflated", "deflated_sorted")


def original_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an original REC checkpoint."""
    config = OneRefConfig(**SIZES[size])
    with torch.device("meta"):
        targets = OneRefForGrounding(config).state_dict()
    shapes = {}
    for target, sources in assignments_of("grounding", config.num_hidden_layers).items():
        rows, *rest = targets[target].shape or (None,)
        shapes |= {source: (rows // len(sources), *rest) if rows else () for source in sources}
    return {**shapes, "text_proj.weight": (config.hidden_size,) * 2, "text_proj.bias": (config.hidden_size,)}


def make_checkpoint(path: Path, size: str) -> None:
    """A checkpoint as the original's training saves it."""
    generator = torch.Generator().manual_seed(0)
    model = {name: torch.randn(shape, generator=generator) for name, shape in original_shapes(size).items()}
    moments = {
        index: {"step": torch.tensor(1.0), "exp_avg": value.clone(), "exp_avg_sq": value.clone()}
        for index, value in enumerate(model.values())
    }
    optimizer = {"state": moments, "param_groups": [{"lr": 3e-5, "params": list(moments)}]}
    args = argparse.Namespace(model=f"beit3_{size}_patch16_384", imsize=384)
    torch.save({"model": model, "optimizer": optimizer, "epoch": 19, "args": args, "val_accu": 0.9}, path)


@dataclass(frozen=True)
class Cost:
    seconds: float
    cpu_seconds: float
    peak_mb: float = 0


def in_a_process(*command: str) -> Cost:
    """What a command costs, which must succeed."""
    os.sync()  # what was written before must not be paid for here
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)


def here(work: Callable[[], object]) -> Cost:
    """What a function costs, the better of two."""
    costs = []
    for _ in range(2):
        os.sync()
        start, cpu_start = time.perf_counter(), time.process_time()
        work()
        costs.append(Cost(time.perf_counter() - start, time.process_time() - cpu_start))
    return min(costs, key=lambda cost: cost.seconds)


def convert(source: str, output: Path, *options: str) -> Cost:
    return in_a_process(
        str(CONVERSION / "convert_oneref.py"), source, "--output", str(output), "--no-tokenizer", *options
    )


def copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 4 << 20)


def with_sorted_storages(checkpoint: Path, target: Path) -> Path:
    """The checkpoint with its storages in the order of their names."""
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(target, "w") as new:
        storages = {name for name in old.namelist() if "/data/" in name}
        for name in [*(name for name in old.namelist() if name not in storages), *sorted(storages)]:
            with old.open(name) as read, new.open(zipfile.ZipInfo(name), "w") as write:
                shutil.copyfileobj(read, write, 4 << 20)
    return target


def end_of_weights(checkpoint: Path, size: str) -> int:
    """Where the last weight ends; weights are numbered before the moments."""
    with zipfile.ZipFile(checkpoint) as archive:
        folder = archive.namelist()[0].split("/")[0]
        weights = [archive.getinfo(f"{folder}/data/{number}") for number in range(len(original_shapes(size)))]
    return max(info.header_offset + info.file_size for info in weights)


def inflate(archive: Path, count: int) -> None:
    """Inflates the first `count` bytes of the one member and drops them."""
    with archive.open("rb") as file:
        header = file.read(30)
        file.seek(30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"))
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        while count > 0 and not inflater.eof:
            count -= len(inflater.decompress(file.read(1 << 18)))


def measure(folder: Path, size: str, kinds: list[str], options: list[str]) -> dict:
    """One row per kind; megabytes and seconds."""
    fixture = Path(__file__).parents[1] / "fixtures" / "mrefm_checkpoint.pth"
    start_up = convert(str(fixture), folder / "small", "--task", "grounding")
    checkpoint = folder / "checkpoint.pth"
    in_a_process(__file__, "--make", str(checkpoint), "--size", size)  # so that this process stays small
    rows = {START_UP: {"seconds": round(start_up.seconds, 1), "cpu_seconds": round(start_up.cpu_seconds, 1)}}
    for kind in kinds:
        source, archive, output = str(checkpoint), folder / f"{kind}.zip", folder / f"output_{kind}"
        inflating = None
        if kind != "pth":
            inner = checkpoint
            if kind == "deflated_sorted":
                inner = with_sorted_storages(checkpoint, folder / "sorted.pth")
            compression = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
            with zipfile.ZipFile(archive, "w", compression, compresslevel=1) as made:
                made.write(inner, MEMBER)
            source = f"{archive}::{MEMBER}"
            if kind != "stored":
                end = end_of_weights(inner, size)
                inflating = here(lambda: inflate(archive, end))  # noqa: B023 - called at once
        cost = convert(source, output, "--max-shard-size", "100GB", *options)
        weights = output / "model.safetensors"
        copying = here(lambda: copy(weights, folder / "copy"))  # noqa: B023
        rows[kind] = {
            "weights_mb": round(weights.stat().st_size / 1e6),
            "source_mb": round(Path(source.split("::")[0]).stat().st_size / 1e6),
            "peak_mb": round(cost.peak_mb),
            "bound_mb": round(weights.stat().st_size / 1e6 * 1.3 + 600),
            "seconds": round(cost.seconds, 1),
            "seconds_without_start_up": round(cost.seconds - start_up.seconds, 1),
            "copy_seconds": round(copying.seconds, 2),
            "cpu_seconds_without_start_up": round(cost.cpu_seconds - start_up.cpu_seconds, 1),
            "copy_cpu_seconds": round(copying.cpu_seconds, 2),
        }
        if inflating is not None:
            rows[kind] |= {
                "inflate_seconds": round(inflating.seconds, 1),
                "inflate_cpu_seconds": round(inflating.cpu_seconds, 1),
            }
        shutil.rmtree(output)
        archive.unlink(missing_ok=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: the temporary folder")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--no-verify", action="store_true", help="measure without the comparison at the end")
    parser.add_argument("--make", type=Path, help="only make a checkpoint there")
    options = parser.parse_args()
    if options.make:
        make_checkpoint(options.make, options.size)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        extra = ["--no-verify"] if options.no_verify else []
        print(json.dumps(measure(Path(folder), options.size, options.kinds, extra), indent=2))


if __name__ == "__main__":
    main()
