# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Scripts of the project as modules."""

import importlib.util
from pathlib import Path


def load_script(path: Path):
    """Loaded by its path: as a folder of modules, training/ would hide the library `evaluate`."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
