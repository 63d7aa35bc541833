# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The command line that the training scripts share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(name: str, description: str, tasks: Sequence[str], arguments: list[str] | None = None) -> int:
    """Reads the recipe and runs it. Returns the exit status; what a person can mend is one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a YAML file, see training/recipes/")
    options, changes = parser.parse_known_args(arguments)
    # Python puts the script's folder first, where evaluate.py would hide the library of that name.
    sys.path[:] = [folder for folder in sys.path if not Path(folder, "evaluate.py").is_file()]

    from .recipes import RecipeError, load_recipe

    try:
        recipe = load_recipe(options.recipe, changes)
        if recipe.task not in tasks:
            raise RecipeError(f"{options.recipe} is a recipe for task {recipe.task}, not for this script.")
    except RecipeError as error:
        return _complain(name, error)

    from .data.sources import DatasetError
    from .data.training import UnusableSample

    try:
        from .trainer import TrainingStopped
        from .training_run import STOPPED_BY_SIGTERM, RunStopped, run_recipe
    except ModuleNotFoundError as error:
        missing = ImportError(f"The package {error.name} is missing: pip install 'oneref-hf[train]'.")
        return _complain(name, missing, of_one_process=True)
    try:
        finished = run_recipe(recipe)
    except RunStopped as stop:
        _complain(name, stop)
        return STOPPED_BY_SIGTERM
    except (RecipeError, TrainingStopped) as error:
        return _complain(name, error)
    except (DatasetError, UnusableSample, ImportError, OSError) as error:
        return _complain(name, error, of_one_process=True)
    except KeyboardInterrupt:
        return 130
    if os.environ.get("RANK", "0") == "0":
        print(f"finished: {finished}")
    return 0


def _complain(name: str, error: Exception, of_one_process: bool = False) -> int:
    """Once per machine what all processes know, from whichever it comes what one of them met."""
    if of_one_process or os.environ.get("LOCAL_RANK", "0") == "0":
        # What comes from a worker process brings that process's traceback; its last line is the sentence.
        sentence = (
            str(error).strip().splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
        )
        print(f"{name}: {sentence}", file=sys.stderr)
    return 1
