# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Writes safetensors piece by piece, so that a model of any size takes no memory to speak of."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}  # to choose from
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor whose values are made when its turn comes: `make` gives them in order, in pieces of any shape."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Iterable[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def parse_size(text: str) -> int:
    """Bytes in a size such as `5GB`, `200MB` or `1GiB`. Raises `ValueError` for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, flags=re.IGNORECASE)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size such as 5GB or 500MB")
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size == 0:
        raise ValueError("a shard cannot be empty")
    return size


def main_dtype(tensors: Iterable[TensorToWrite | torch.Tensor]) -> str:
    """The floating-point type of most of the weights, as a configuration names it."""
    counts: Counter = Counter()
    for tensor in tensors:
        if tensor.dtype.is_floating_point:
            counts[tensor.dtype] += tensor.nbytes
    return str(counts.most_common(1)[0][0]).removeprefix("torch.")


def cast(name: str, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values of the weight `name` in another type. Raises `ValueError` where float16 cannot hold them."""
    result = values.to(dtype)
    if dtype == torch.float16 and result.isinf().any() and not values.isinf().any():
        raise ValueError(f"{name} has values that float16 cannot hold; use bfloat16.")
    return result


def split_into_shards(tensors: Sequence[TensorToWrite], max_shard_size: int) -> list[list[TensorToWrite]]:
    """Fills shards in order; a tensor larger than a shard gets one of its own."""
    shards: list[list[TensorToWrite]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.nbytes > room:
            shards.append([])
            room = max_shard_size
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def write_model(
    folder: Path,
    tensors: Sequence[TensorToWrite],
    max_shard_size: int,
    on_written: Callable[[int], object] = lambda count: None,
) -> dict[str, str]:
    """Writes the files that `from_pretrained` reads.

    Args:
        folder: where to; must exist.
        tensors: in any order; their `make` is called once each, one after another.
        max_shard_size: bytes per file, above which the model is sharded and an index written.
        on_written: called with the number of bytes after each tensor.

    Returns:
        The file of each tensor, by name.
    """
    # The widest types first, as safetensors itself does, so that every tensor is aligned in the file.
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    shards = split_into_shards(tensors, max_shard_size)
    files = [SINGLE_FILE]
    if len(shards) != 1:
        files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards):
        _write_file(folder / file, shard, on_written)
    weight_map = {tensor.name: file for file, shard in zip(files, shards) for tensor in shard}
    if len(shards) != 1:
        index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return weight_map


def tensor_offsets(path: Path) -> dict[str, int]:
    """Where the bytes of each tensor begin in a safetensors file."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
    return {
        name: 8 + header_size + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"
    }


def _write_file(path: Path, tensors: Sequence[TensorToWrite], on_written: Callable[[int], object]) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    for tensor, (start, end) in zip(tensors, _offsets(tensors)):
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = 0
            for values in tensor.make():
                written += file.write(values.contiguous().reshape(-1).view(torch.uint8).numpy())
            if written != tensor.nbytes:
                raise RuntimeError(f"{tensor.name} was announced with {tensor.nbytes} bytes and has {written}")
            on_written(tensor.nbytes)


def _offsets(tensors: Sequence[TensorToWrite]) -> Iterator[tuple[int, int]]:
    start = 0
    for tensor in tensors:
        yield start, start + tensor.nbytes
        start += tensor.nbytes
