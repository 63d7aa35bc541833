# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Writes a converted (or fine-tuned) directory back as a checkpoint that the original OneRef code loads.

    python conversion/export_original.py DIR OUTPUT.pth

The file is `{"model": ..., "epoch": ...}`, what the original's evaluation reads. Every parameter that the model uses
comes back bit for bit. `text_proj`, which the original defines and never uses, is written as zeros, so that a strict
load succeeds; heads that the conversion dropped are gone.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from convert_oneref import REPORT_FILE
from oneref_keys import PARTS, TASKS, assignments_of
from safetensors import SafetensorError, safe_open
from safetensors_writer import INDEX_FILE, SINGLE_FILE


class ExportError(ValueError):
    """A directory that is not a complete OneRef or BEiT-3 model."""


def export(directory: Path, output: Path) -> dict[str, torch.Tensor]:
    """Writes `output` and returns the original's state dict, whose tensors are mapped from the directory's files.

    Raises:
        ExportError: the directory holds no such model, or its parameters are not exactly the model's.
    """
    config = _read_json(directory / "config.json")
    architecture = (config.get("architectures") or [None])[0]
    task = next((name for name, task in TASKS.items() if task.model_class == architecture), None)
    if task is None:
        known = ", ".join(task.model_class for task in TASKS.values())
        raise ExportError(f"'{directory}' holds a {architecture or config.get('model_type')}, not one of {known}.")

    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or not 0 < layers < 1000:
        raise ExportError(f"'{directory}' has no sensible num_hidden_layers in its configuration.")

    files = _weight_files(directory)
    wanted = assignments_of(task, layers)
    for part in TASKS[task].optional:
        if not any(target in files for target in PARTS[part].renames.values()):
            wanted = {name: old for name, old in wanted.items() if name not in PARTS[part].renames.values()}
    left_over = sorted(set(files) ^ set(wanted))
    if left_over:
        raise ExportError(
            f"'{directory}' does not hold exactly the parameters of a {architecture}: {', '.join(left_over)}."
        )

    state: dict[str, torch.Tensor] = {}
    for file in sorted(set(files.values())):
        with safe_open(directory / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                sources, values = wanted[name], opened.get_tensor(name)
                parts = [part.clone() for part in values.chunk(len(sources))] if len(sources) > 1 else [values]
                state |= dict(zip(sources, parts))
    if "visu_proj.weight" in state:
        state |= {f"text_proj.{kind}": torch.zeros_like(state[f"visu_proj.{kind}"]) for kind in ("weight", "bias")}

    epoch = 0
    if (directory / REPORT_FILE).exists():
        epoch = _read_json(directory / REPORT_FILE).get("original_training", {}).get("epoch", 0)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        torch.save({"model": state, "epoch": epoch}, partial)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return state


def _weight_files(directory: Path) -> dict[str, str]:
    """The file of each parameter, by name."""
    try:
        if (directory / INDEX_FILE).exists():
            files = set(_read_json(directory / INDEX_FILE)["weight_map"].values())
        else:
            files = {SINGLE_FILE}
        names = {}
        for file in sorted(files):
            with safe_open(directory / Path(file).name, framework="pt") as opened:
                names |= dict.fromkeys(opened.keys(), Path(file).name)
        return names
    except (OSError, SafetensorError, KeyError, AttributeError) as error:
        raise ExportError(f"The weights in '{directory}' cannot be read: {error}.") from error


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"'{path}' cannot be read, so '{path.parent}' is not a model directory: {error}.") from error
    if not isinstance(content, dict):
        raise ExportError(f"'{path}' holds no JSON object.")
    return content


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory written by convert_oneref or training")
    parser.add_argument("output", type=Path, metavar="OUTPUT.pth", help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_args(arguments)
    try:
        if options.output.exists() and not options.overwrite:
            raise ExportError(f"'{options.output}' exists already; choose another name or pass --overwrite.")
        state = export(options.directory, options.output)
    except (ValueError, OSError) as error:
        print(f"export_original: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"Wrote {options.output}: {len(state)} tensors.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
