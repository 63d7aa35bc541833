# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Training curves: one panel for every loss, the scores, the learning rate and the gradient norm.

    python -m oneref_hf.training_curves outputs/rec_single_base_refcoco/fine-tuning/checkpoint-900 curves.png

A run of a recipe draws them itself, as `curves.png` beside the checkpoints of each stage. Needs matplotlib, which the
extra `[train]` brings.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .configuration_oneref import DEFAULT_LOSS_WEIGHTS


_COLUMNS = 3
_WINDOW = 0.04  # share of the curve that the bold line averages over
_LOSS, _SCORE, _OTHER = "#2563a8", "#2e8540", "#6b6b6b"
_LABELS = {"loss": "loss, all together", "learning_rate": "learning rate", "grad_norm": "gradient norm"}
_NOT_SCORES = ("eval_samples", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_prep")


def training_curves(log: Sequence[Mapping[str, float]] | str | Path):
    """Draws a run.

    Args:
        log: `trainer.state.log_history`, or the path of a `trainer_state.json` or of a checkpoint that holds one.

    Returns:
        a `matplotlib.figure.Figure`: the total and every loss by name (already weighted; thin: as logged, bold: a
        moving average), every score of the evaluations (with a ring around the best), learning rate and gradient
        norm, each against optimiser steps. What the log does not have is left out.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no such log, or nothing in it to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Training curves need matplotlib: pip install oneref-hf[train].") from error
    series = _series(_read(log) if isinstance(log, (str, Path)) else log)
    if not series:
        raise ValueError("The log holds neither losses nor scores, so there is nothing to draw.")
    columns = min(len(series), _COLUMNS)
    rows = math.ceil(len(series) / columns)
    last_step = max(step for points in series.values() for step, _ in points)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows), layout="constrained")
    for place, (name, points) in enumerate(series.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_xlim(0, 1.02 * last_step)
        _panel(axes, name, points)
    return figure


def save_training_curves(log: Sequence[Mapping[str, float]] | str | Path, path: str | Path) -> None:
    """`training_curves` as a PNG, which is complete or not there."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        training_curves(log).savefig(partial, format="png", dpi=110)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: str | Path) -> list[dict]:
    file = Path(path, "trainer_state.json") if Path(path).is_dir() else Path(path)
    try:
        return json.loads(file.read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{file}' is not the trainer_state.json of a checkpoint.") from error


def _series(log: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Steps and values of each panel, in the order of drawing."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in log:
        for name, value in row.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(name, []).append((row["step"], value))
    scores = [name for name in found if name.startswith("eval_") and name not in _NOT_SCORES]
    wanted = ["loss", *DEFAULT_LOSS_WEIGHTS, *scores, "learning_rate", "grad_norm"]
    return {name: found[name] for name in wanted if name in found}


def _panel(axes, name: str, points: list[tuple[float, float]]) -> None:
    steps, values = zip(*points)
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("step", fontsize=8)
    if name.startswith("eval_"):
        best = max(points, key=lambda point: point[1])
        axes.plot(steps, values, color=_SCORE, marker=".", linewidth=1.4)
        axes.plot(*best, color=_SCORE, marker="o", markersize=9, markerfacecolor="none")
        shown = f"best {best[1]:.3g} at {best[0]:g}"
    elif name == "learning_rate":
        axes.plot(steps, values, color=_OTHER, linewidth=1.4)
        shown = f"last {values[-1]:.3g}"
    else:
        colour = _OTHER if name == "grad_norm" else _LOSS
        averaged = _averaged(values)
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
        axes.plot(steps, averaged, color=colour, linewidth=1.6)
        axes.set_ylim(bottom=0)
        shown = f"last {averaged[-1]:.3g}"
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.set_title(_LABELS.get(name, name.removeprefix("eval_").replace("_", " ")), fontsize=10, loc="left")
    axes.set_title(shown, fontsize=8, loc="right", color=_OTHER)


def _averaged(values: Sequence[float]) -> list[float]:
    """The mean of each value and those right before it."""
    window = max(round(_WINDOW * len(values)), 1)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [
        (sums[end] - sums[max(end - window, 0)]) / (end - max(end - window, 0)) for end in range(1, len(values) + 1)
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="training_curves", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a checkpoint or its trainer_state.json")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    options = parser.parse_args(arguments)
    try:
        save_training_curves(options.checkpoint, options.picture)
    except (ImportError, OSError, ValueError) as error:
        print(f"training_curves: {error}", file=sys.stderr)
        return 1
    return 0


__all__ = ["save_training_curves", "training_curves"]

if __name__ == "__main__":
    sys.exit(main())
