# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Directories that appear only when complete, and checksums."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def check_output(output: Path, overwrite: bool, is_ours: Callable[[dict], bool]) -> None:
    """Raises `ValueError` where writing to `output` would destroy anything but an earlier conversion.

    Args:
        output: the directory to write; it may be absent or empty.
        overwrite: whether an earlier conversion may be replaced.
        is_ours: says from the contents of `config.json` whether the directory is such a conversion.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        ours = bool(is_ours(json.loads((output / "config.json").read_text(encoding="utf-8"))))
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise ValueError(f"'{output}' holds something else than an earlier conversion; choose another --output.")
    if not overwrite:
        raise ValueError(f"'{output}' exists already; choose another --output or pass --overwrite.")


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
        try:
            partial.rename(output)
        except OSError:
            if retired.exists():
                retired.rename(output)
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in created:
            with suppress(OSError):  # somebody else has put something there meanwhile
                folder.rmdir()
        raise
    shutil.rmtree(retired, ignore_errors=True)


def sha256(path: Path, cancelled: Callable[[], bool] = lambda: False) -> str | None:
    """SHA-256 of a file in hexadecimal; `None` if it was cancelled."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(4 << 20):
            if cancelled():
                return None
            digest.update(block)
    return digest.hexdigest()
