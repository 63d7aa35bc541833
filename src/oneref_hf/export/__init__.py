# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Models for other runtimes: ONNX, `torch.export` and AOTInductor programs, and quantised weights.

`program` says what is exported: four tensors in, the answers out. `onnx`, `torch_export` and `aotinductor` each write
such a program and run it. `exporting` makes a directory of it and compares it with the model, `loading` reads that
directory. `torchao` is for models that stay in PyTorch.
"""

import importlib


_PUBLIC_NAMES = {
    "exporting": ["export_model"],
    "loading": ["OneRefExportedModel"],
    "program": ["ExportError"],
    "torchao": ["quantization_config"],
}
_MODULE_OF_NAME = {name: module for module, names in _PUBLIC_NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF_NAME)


def __getattr__(name: str):
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
