# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Converts an original VQ-KD visual tokenizer (BEiT v2) to a directory that `VqkdModel.from_pretrained` reads.

    python conversion/convert_vqkd.py vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth --output converted/vqkd
    python conversion/convert_vqkd.py --name vqkd

Sizes are read off the weights, which keep the type they are stored in unless `--dtype` says otherwise.
`convert_oneref.py --all` converts the released tokenizer, too.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from checkpoint_reader import Checkpoint, open_checkpoint
from command_line import source_options, writing_options
from output_directory import (
    DEFAULT_ROOT,
    ConversionError,
    check_output,
    refuse_differences,
    released_card,
    safetensors_errors,
    sha256,
    source_facts,
    without_progress_bars,
    write_report,
)
from safetensors import safe_open
from safetensors_writer import DTYPES, SINGLE_FILE, cast, main_dtype
from sources import Source, released, released_row, resolve
from vqkd_keys import (
    check_tensors,
    config_from_tensors,
    convert_tensors,
    reason_to_ignore,
    rename,
    sources_of,
    unknown_names,
)

from oneref_hf.complete_output import complete_directory
from oneref_hf.configuration_vqkd import VqkdConfig
from oneref_hf.modeling_vqkd import VqkdModel


UNKNOWN = "unknown, dropped on request (--allow-unused)"

CARD = """\
---
library_name: transformers
tags: [vqkd, beit-v2, visual-tokenizer]
---

# VQ-KD visual tokenizer

Names each {patch_size} x {patch_size} patch of an image by one of {codebook_size} codes. It is the tokenizer of
[BEiT v2](https://arxiv.org/abs/2208.06366), with which OneRef labels masked patches: encoder and codebook, without the
decoder.

```python
import torch
from oneref_hf import VqkdModel

model = VqkdModel.from_pretrained("DIRECTORY").eval()
image = torch.rand(1, {num_channels}, {image_size}, {image_size})  # in [0, 1], not normalised
codes = model.get_codebook_indices(image)  # (1, {num_patches}), row by row
```

Other image sizes work if they are multiples of {patch_size}; positions are then interpolated as in the original.

Converted from `{origin}` (file's SHA-256 `{checksum}`). The tokenizer and its released weights come from
`microsoft/unilm` (beit2, MIT licence).
"""


def convert(
    source: Source,
    output: Path,
    dtype: torch.dtype | None = None,
    allow_unused: bool = False,
    verify: bool = True,
    overwrite: bool = False,
) -> dict:
    """
    Converts one file and returns the report that is also written to `conversion_report.json`.

    Args:
        source: a checkpoint in the original's format.
        output: directory to write; must not exist, be empty, or with `overwrite` be an earlier conversion.
        dtype: floating-point type of the written weights; by default the one they are stored in.
        allow_unused: drops source tensors that no table accounts for, instead of refusing the file.
        verify: compares what was written with the source before it appears.
        overwrite: replaces an earlier conversion.

    Raises:
        ValueError: if the file is no VQ-KD checkpoint, does not fit, or must not be written to `output`.
        OSError: if reading or writing fails.
    """
    check_output(output, overwrite, lambda config: config.get("model_type") == VqkdConfig.model_type, source.path)
    with (
        safetensors_errors(output),
        complete_directory(output) as folder,
        open_checkpoint(source.path, source.member, scratch=folder) as checkpoint,
    ):
        names = list(checkpoint.tensors)
        original = {name: checkpoint.read(name) for name in names if rename(name) is not None}
        config = config_from_tensors(original)
        tensors, unknown = convert_tensors(original), unknown_names(names)
        with torch.device("meta"):
            model = VqkdModel(config)
        check_tensors(tensors, model.state_dict(), [] if allow_unused else unknown)
        weights = {name: cast(name, tensor, dtype or tensor.dtype) for name, tensor in tensors.items()}
        model.load_state_dict(weights, assign=True)
        with without_progress_bars():
            model.save_pretrained(folder)
        if verify:
            verify_weights(folder, checkpoint, dtype)
        checksum = source.checksum or sha256(source.path)
        report = {
            "source": source_facts(source, checksum, main_dtype(original.values()), config.image_size),
            "model_class": type(model).__name__,
            "task": "tokenizer",
            "dtype": main_dtype(weights.values()),
            "image_size": config.image_size,
            "parameters": sum(weight.numel() for weight in weights.values()),
            "bytes": sum(weight.nbytes for weight in weights.values()),
            "verified": verify,
            "original_training": checkpoint.facts,
            "mapped": sources_of(names),
            "dropped": {name: reason_to_ignore(name) or UNKNOWN for name in names if name not in original},
            "fresh": {},
        }
        (folder / "README.md").write_text(_card(source, config, checksum), encoding="utf-8")
        write_report(folder, report)
    return report


def verify_weights(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype | None) -> None:
    """Loads a directory back and compares it, bit for bit, with the source (cast to `dtype`), read once more.

    The model that the written configuration describes must want exactly the tensors that are there.
    """
    with torch.device("meta"):
        wanted = VqkdModel(VqkdConfig.from_pretrained(folder)).state_dict()
    with safe_open(folder / SINGLE_FILE, framework="pt") as written:
        held = set(written.keys())
        differing = sorted(held ^ set(wanted))
        for source in filter(rename, checkpoint.tensors):
            for name, tensor in convert_tensors({source: checkpoint.read(source)}).items():
                if name in held and not _same_bits(written.get_tensor(name), tensor.to(dtype or tensor.dtype)):
                    differing.append(f"{name} (from {source})")
    refuse_differences(differing)


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def _card(source: Source, config: VqkdConfig, checksum: str) -> str:
    """The full card of the released tokenizer, else a short one."""
    if source.row is not None:
        return released_card(source.row, checksum)
    return CARD.format(
        **config.to_dict(),
        num_patches=(config.image_size // config.patch_size) ** 2,
        origin=source.given if source.repo else "::".join(filter(None, [source.path.name, source.member])),
        checksum=checksum,
    )


def summary(report: dict, output: Path) -> str:
    """What the conversion did, for people."""
    config = VqkdConfig.from_pretrained(output)
    reasons = Counter(report["dropped"].values())
    return "\n".join(
        [
            f"Wrote {output}: {config.num_hidden_layers} layers of width {config.hidden_size}, "
            f"{config.codebook_size} codes of dimension {config.codebook_dim}, "
            f"{report['parameters']:,} parameters, {report['dtype']}"
            + (", compared with the source." if report["verified"] else ", not compared."),
            *(f"Left out ({count}): {reason}." for reason, count in reasons.items() if reason != UNKNOWN),
            *(f"Left out, unknown: {name}." for name, reason in report["dropped"].items() if reason == UNKNOWN),
        ]
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source_options(parser, "tokenizer")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="directory to write; a released tokenizer: converted/NAME"
    )
    writing_options(parser)
    options = parser.parse_args(arguments)
    if options.checkpoint and options.output is None:
        parser.error("--output is missing")
    return options


def _run(options: argparse.Namespace) -> str:
    if options.name is not None:
        if released_row(options.name).kind != "tokenizer":
            raise ConversionError(f"'{options.name}' is no VQ-KD visual tokenizer; use convert_oneref.py --name.")
        source = released(options.name)
    else:
        source = resolve(options.checkpoint)
    output = options.output or DEFAULT_ROOT / options.name
    dtype = DTYPES.get(options.dtype)
    report = convert(source, output, dtype, options.allow_unused, not options.no_verify, options.overwrite)
    return summary(report, output)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    try:
        print(_run(options))
    except (ValueError, OSError) as error:
        print(f"convert_vqkd: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
