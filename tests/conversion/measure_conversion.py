# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Measures memory and time of a conversion at full size, from a .pth file and from zip archives.

    python tests/conversion/measure_conversion.py --size base --folder /tmp
    python tests/conversion/measure_conversion.py --size large --folder /tmp --kinds pth

Makes a training checkpoint of random weights with both AdamW moments (base 2.7 GB, large 8.2 GB), converts it in a
process of its own and prints, as JSON, the peak resident memory of that process beside the bound (weights x 1.3 +
600 MB) and its time beside that of a plain copy of the weights. Everything it made is deleted at the end.
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
START_UP = "start-up"  # a conversion of next to nothing


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


def in_a_process(*command: str) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a command that must succeed."""
    os.sync()  # what was written before must not be paid for here
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1000


def convert(source: str, output: Path, *options: str) -> tuple[float, float]:
    return in_a_process(
        str(CONVERSION / "convert_oneref.py"), source, "--output", str(output), "--no-tokenizer", *options
    )


def copy_seconds(source: Path, target: Path) -> float:
    """Time of a plain copy, the better of two."""
    times = []
    for _ in range(2):
        os.sync()
        start = time.perf_counter()
        with source.open("rb") as read, target.open("wb") as write:
            shutil.copyfileobj(read, write, 4 << 20)
        times.append(time.perf_counter() - start)
    target.unlink()
    return min(times)


def measure(folder: Path, size: str, kinds: list[str], options: list[str]) -> dict:
    """One row per kind; megabytes and seconds."""
    fixture = Path(__file__).parents[1] / "fixtures" / "mrefm_checkpoint.pth"
    start_up, _ = convert(str(fixture), folder / "small", "--task", "grounding")
    checkpoint = folder / "checkpoint.pth"
    in_a_process(__file__, "--make", str(checkpoint), "--size", size)  # so that this process stays small
    rows = {}
    for kind in kinds:
        source, archive = str(checkpoint), folder / f"{kind}.zip"
        if kind != "pth":
            compression = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}[kind]
            with zipfile.ZipFile(archive, "w", compression, compresslevel=1) as made:
                made.write(checkpoint, MEMBER)
            source = f"{archive}::{MEMBER}"
        output = folder / f"output_{kind}"
        seconds, peak = convert(source, output, "--max-shard-size", "100GB", *options)
        weights = output / "model.safetensors"
        copy = copy_seconds(weights, folder / "copy")
        rows[kind] = {
            "weights_mb": round(weights.stat().st_size / 1e6),
            "source_mb": round(Path(source.split("::")[0]).stat().st_size / 1e6),
            "peak_mb": round(peak),
            "bound_mb": round(weights.stat().st_size / 1e6 * 1.3 + 600),
            "seconds": round(seconds, 1),
            "seconds_without_start_up": round(seconds - start_up, 1),
            "copy_seconds": round(copy, 2),
        }
        shutil.rmtree(output)
        archive.unlink(missing_ok=True)
    return {START_UP: round(start_up, 1), **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: the temporary folder")
    parser.add_argument(
        "--kinds", nargs="+", choices=["pth", "stored", "deflated"], default=["pth", "stored", "deflated"]
    )
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
