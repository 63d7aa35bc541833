# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Packages of AOTInductor: a program compiled to native code, weights included, for machines like this one."""

import shutil
from pathlib import Path

import torch

from .program import INPUTS, ExportError, OneRefProgram


FILE = "model.pt2"
RUNS_CODE = True  # the file is native code


def write(program: OneRefProgram, folder: Path) -> None:
    """
    Raises:
        ExportError: without a C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        found = shutil.which(get_cpp_compiler())
    except Exception:  # of a class of its own, which is none of the public ones
        found = None
    if found is None:
        raise ExportError("AOTInductor needs a C++ compiler, and there is none: install g++, or name one in $CXX.")
    # Frozen weights are constants that the compiler may lay out as the products like them.
    aoti_compile_and_package(program.trace(), package_path=str(folder / FILE), inductor_configs={"freezing": True})


class Runner:
    """Runs a package."""

    def __init__(self, path: Path):
        from torch._inductor import aoti_load_package

        self.module = aoti_load_package(str(path))

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return self.module(**{name: inputs[name] for name in INPUTS})
