# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Does MRefM help? The small model on drawn scenes, with and without it, at equal compute.

    python training/make_scenes.py --output ablation/converted/scenes --size 128 --train 3000 --val 500 --test 1000 \\
        --compositional 1000
    python training/start_small_model.py --output ablation/converted
    python training/ablate_mrefm.py --converted ablation/converted --output ablation/outputs

All arms start from the weights that the small model starts from, as OneRef starts from BEiT-3, and take the same
number of steps of the same size: one epoch of pre-training and two of fine-tuning, or three of fine-tuning. Either
kind of step passes picture and phrase through the encoder once; the table has the minutes of each arm. MRefM is masked
modelling of picture and words with the visual relation, which MIM has, too; the semantic relation needs labels and
stays off. Finished runs are kept, and one that was interrupted continues, when the same command runs again.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from oneref_hf.complete_output import write_text


TRAINING = Path(__file__).resolve().parent
RECIPES = TRAINING / "recipes"
# Arm: what it changes of the pre-training, None for none.
ARMS = {
    "no pre-training": None,
    "MIM alone": ["--stages.pre-training.losses.mlm", "false"],
    "MLM alone": [
        "--stages.pre-training.losses.mim",
        "false",
        "--stages.pre-training.losses.visual_relation",
        "false",
    ],
    "MRefM": [],
    "MRefM, random masking": ["--data.masking.strategy", "random"],
    "MRefM, block-wise masking": ["--data.masking.strategy", "blockwise"],
}
SPLITS = ("test", "compositional")
METRIC = "accuracy@0.5"
_EPOCHS = 2  # of fine-tuning after an epoch of pre-training
_LEARNING_RATE = "3.0e-4"  # of fine-tuning: that of pre-training


class AblationError(Exception):
    """A sentence for the user."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        rows = {arm: [run_arm(arm, seed, options) for seed in options.seeds] for arm in ARMS}
    except AblationError as error:
        print(f"ablate_mrefm: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    return 0


def run_arm(arm: str, seed: int, options: argparse.Namespace) -> dict:
    """Trains one arm with one seed and returns `seconds` and, by split, its accuracy."""
    folder = options.output / f"{arm.replace(',', '').replace(' ', '-')}-{seed}"
    record = folder / "arm.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    start, seconds, changes = "scenes-start", 0.0, ARMS[arm]
    shared = ["--seed", str(seed), "--converted", str(options.converted), *shlex.split(options.changes)]
    if changes is not None:
        place = folder / "mrefm"
        seconds += _launch("pretrain_mrefm", "scenes_mrefm", [*shared, *changes, "--output_dir", str(place)])
        start = str(place / "pre-training" / "finished")
    epochs = _EPOCHS if changes is not None else _EPOCHS + 1
    place = folder / "rec"
    arguments = ["--model.init", start, "--output_dir", str(place)]
    arguments += ["--stages.fine-tuning.epochs", str(epochs), "--stages.fine-tuning.learning_rate", _LEARNING_RATE]
    # Boxes alone: the mask head would double the time of a step, and pre-training has none.
    no_mask = "--stages.fine-tuning.losses.mask_"
    boxes_alone = [f"{no_mask}focal", "false", f"{no_mask}dice", "false"]
    seconds += _launch("finetune", "scenes_rec_res", [*shared, *arguments, *boxes_alone])
    scores = json.loads((place / "results.json").read_text(encoding="utf-8"))["scenes"]
    result = {"seconds": seconds, **{split: scores[split][METRIC] for split in SPLITS}}
    write_text(record, json.dumps(result) + "\n")
    return result


def _launch(script: str, recipe: str, arguments: list[str]) -> float:
    command = [sys.executable, str(TRAINING / f"{script}.py"), str(RECIPES / f"{recipe}.yaml"), *arguments]
    started = time.monotonic()
    if subprocess.run(command, check=False).returncode != 0:
        raise AblationError(f"'{shlex.join(command)}' failed; see above, then give the same command again.")
    return time.monotonic() - started


def table(rows: dict[str, list[dict]]) -> str:
    """Mean over seeds and, in brackets, every seed, as Markdown."""
    lines = [f"| arm | {' | '.join(SPLITS)} | minutes |", "| --- |" + " --- |" * (len(SPLITS) + 1)]
    for arm, results in rows.items():
        cells = []
        for split in SPLITS:
            values = [result[split] for result in results]
            cells.append(f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})")
        minutes = statistics.mean(result["seconds"] for result in results) / 60
        lines.append(f"| {arm} | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--converted", type=Path, required=True, metavar="DIR", help="where scenes and start are")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="default: 0 1")
    parser.add_argument("--changes", default="", metavar="WORDS", help="changes to both recipes, as one argument")
    return parser


if __name__ == "__main__":
    sys.exit(main())
