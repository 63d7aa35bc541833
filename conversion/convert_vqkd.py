# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Converts an original VQ-KD visual tokenizer (BEiT v2) to a directory that `VqkdModel.from_pretrained` reads."""

import argparse
import sys
from pathlib import Path

import torch
from checkpoint_reader import open_checkpoint
from output_directory import check_output, complete_directory, sha256
from sources import resolve
from vqkd_keys import check_tensors, config_from_tensors, convert_tensors, reason_to_ignore, rename, unknown_names

from oneref_hf.configuration_vqkd import VqkdConfig
from oneref_hf.modeling_vqkd import VqkdModel


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
    checkpoint: str,
    output: Path,
    dtype: torch.dtype = torch.float32,
    allow_unused: bool = False,
    overwrite: bool = False,
) -> str:
    """
    Converts one file and returns a report of a few lines.

    Args:
        checkpoint: file in the original's format; `sources.resolve` says in which ways it can be named.
        output: directory to write; must not exist, or with `overwrite` be an earlier conversion.
        dtype: floating-point type of the written weights.
        allow_unused: drops source tensors that no table accounts for, instead of refusing the file.
        overwrite: replaces an earlier conversion.

    Raises:
        ValueError: if the file is no VQ-KD checkpoint, does not fit, or must not be written to `output`.
        OSError: if reading or writing fails.
    """
    check_output(output, overwrite, lambda config: config.get("model_type") == VqkdConfig.model_type)
    source = resolve(checkpoint)
    if source.path.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"'{source.path}' lies inside '{output}', which would be replaced; choose another --output.")
    with open_checkpoint(source.path, source.member) as opened:
        names = list(opened.tensors)
        original = {name: opened.read(name) for name in names if rename(name) is not None}
    config = config_from_tensors(original)
    tensors, unknown = convert_tensors(original), unknown_names(names)
    with torch.device("meta"):
        model = VqkdModel(config)
    check_tensors(tensors, model.state_dict(), [] if allow_unused else unknown)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)

    with complete_directory(output) as directory:
        model.save_pretrained(directory)
        card = CARD.format(
            **config.to_dict(),
            num_patches=(config.image_size // config.patch_size) ** 2,
            origin=source.given if source.repo else "::".join(filter(None, [source.path.name, source.member])),
            checksum=sha256(source.path),
        )
        (directory / "README.md").write_text(card, encoding="utf-8")

    left_out = [reason for name in names if (reason := reason_to_ignore(name)) is not None]
    return "\n".join(
        [
            f"Wrote {output}: {config.num_hidden_layers} layers of width {config.hidden_size}, "
            f"{config.codebook_size} codes of dimension {config.codebook_dim}, "
            f"{sum(tensor.numel() for tensor in tensors.values()):,} parameters.",
            *(f"Left out ({left_out.count(reason)}): {reason}." for reason in dict.fromkeys(left_out)),
            *(f"Left out, unknown: {name}." for name in unknown),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="original file, FILE.zip::MEMBER or hf://OWNER/NAME/FILE[::MEMBER]"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="type of the written weights"
    )
    parser.add_argument("--allow-unused", action="store_true", help="drop source tensors that have no place")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
    options = vars(parser.parse_args(arguments))
    try:
        print(convert(**{**options, "dtype": getattr(torch, options["dtype"])}))
    except (ValueError, OSError) as error:
        print(f"convert_vqkd: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
