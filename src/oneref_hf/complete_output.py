# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Files and directories that appear only when complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Under a temporary name first."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def what_is_there(output: Path, is_ours: Callable[[dict], bool]) -> str | None:
    """What writing to `output` would replace: `None` for nothing, "ours" or "other".

    Args:
        output: a directory; it may be absent or empty.
        is_ours: says from the contents of `config.json` whether the directory is an earlier result.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        return "ours" if is_ours(json.loads((output / "config.json").read_text(encoding="utf-8"))) else "other"
    except (OSError, ValueError, TypeError, AttributeError):
        return "other"


@contextmanager
def complete_directory(output: Path) -> Iterator[Path]:
    """A new directory beside `output` that takes its place at the end, or vanishes if anything fails before."""
    output = output.resolve()
    partial, retired = (output.with_name(f".{output.name}.{kind}-{os.getpid()}") for kind in ("partial", "retired"))
    created = [folder for folder in partial.parents if not folder.exists()]  # innermost first
    try:
        partial.mkdir(parents=True)
        yield partial
        if output.exists():
            output.rename(retired)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if retired.exists() and not output.exists():
            retired.rename(output)
        for folder in created:
            with suppress(OSError):  # somebody else has put something there meanwhile
                folder.rmdir()
        raise
    shutil.rmtree(retired, ignore_errors=True)


__all__ = ["complete_directory", "what_is_there", "write_text"]
