# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Makes what the small model for drawn scenes starts from: weights with a tokenizer, and a visual tokenizer.

    python training/make_scenes.py --output converted/scenes --size 128 --train 10000 --val 1000 --test 2000 \\
        --compositional 2000
    python training/start_small_model.py --output converted

writes `converted/scenes-start` and `converted/scenes-visual-tokenizer`, which the recipes `scenes_*` name. How they
come about is told in `oneref_hf.small_model`. The same options give the same files again. `--weights DIR` goes on
from a `scenes-start` that was made before; give another `--output` and `--seed` then, and a lower `--learning-rate`.
"""

import argparse
import sys
from pathlib import Path

import torch

from oneref_hf.data.scenes import SceneRecords
from oneref_hf.small_model import IMAGE_SIZE, write_starting_point


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        pictures = [record["image"] for record in SceneRecords("train", options.pictures, options.seed, IMAGE_SIZE)]
        paths, scores = write_starting_point(
            options.output,
            pictures,
            options.steps,
            options.scenes,
            options.seed,
            options.learning_rate,
            options.weights,
            options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            options.processes,
        )
    except (OSError, ValueError) as error:
        print(f"start_small_model: {error}", file=sys.stderr)
        return 1
    print("of new pictures: " + ", ".join(f"{name} {value:.0%}" for name, value in scores.items()))
    for path in paths.values():
        print(f"written: {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where both directories go")
    parser.add_argument(
        "--pictures",
        type=int,
        default=400,
        metavar="N",
        help="scenes to fit the visual tokenizer to (default: 400)",
    )
    parser.add_argument(
        "--scenes", type=int, default=48_000, metavar="N", help="scenes to learn from (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=15_000, metavar="N", help="of learning (default: %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=2e-3, metavar="X", help="the highest (default: %(default)s)"
    )
    parser.add_argument("--weights", type=Path, metavar="DIR", help="a scenes-start to go on from (default: none)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that draw scenes (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, scenes and k-means (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
