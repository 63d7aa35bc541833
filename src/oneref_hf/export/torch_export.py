# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Programs of `torch.export`: a graph of PyTorch operators that runs without the model's code."""

from pathlib import Path

import torch

from .program import INPUTS, OneRefProgram


FILE = "model.pt2"
RUNS_CODE = True  # reading the file evaluates expressions in it and may unpickle


def write(program: OneRefProgram, folder: Path) -> None:
    """Traces the program and writes it into the folder."""
    torch.export.save(program.trace(), folder / FILE)


class Runner:
    """Runs a program file."""

    def __init__(self, path: Path):
        self.module = torch.export.load(path).module()

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return self.module(**{name: inputs[name] for name in INPUTS})
