# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Referring data: annotations become records, records become training samples. Everything is imported on first use."""

import importlib


_MODULE_OF_NAME = {
    "DatasetError": "sources",
    "load_referring_dataset": "loading",
    "open_image": "records",
    "record_features": "records",
    "target_mask": "records",
    "undecoded": "records",
}

__all__ = sorted(_MODULE_OF_NAME)


def __getattr__(name: str):
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
