# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Puts the small model for drawn scenes into the package, with a card that says how good it is.

    python training/evaluate.py --model converted/scenes-start --dataset converted/scenes \\
        --split test compositional --protocol picture --output outputs/scenes-start
    python training/ship_small_model.py --model converted/scenes-start --results outputs/scenes-start/results.json

Weights, configuration, tokenizer and processor go to `src/oneref_hf/small_model_files`, where `oneref ground` and
`oneref demo` look without `--model`. The card's tables are those of the results; how the weights came about is text in
`small_model_card.md`, to be edited for others.
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path

from safetensors import safe_open

from oneref_hf.complete_output import complete_directory, what_is_there


FOLDER = Path(__file__).resolve().parents[1] / "src" / "oneref_hf" / "small_model_files"
TEMPLATE = Path(__file__).with_name("small_model_card.md")
FILES = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
MAX_BYTES = 16e6
SPLITS, PROTOCOL = ("test", "compositional"), "picture"
# What was aimed at, by name of the metric.
TARGETS = {"accuracy": 0.92, "lowest": 0.85, "miou": 0.80, "gap": 0.05, "score_auroc": 0.80}


class ShippingError(Exception):
    """A sentence for the user."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        ship(options.model, options.results, options.output)
    except (OSError, ValueError, KeyError, ShippingError) as error:
        print(f"ship_small_model: {error}", file=sys.stderr)
        return 1
    print(f"written: {options.output}")
    return 0


def ship(model: Path, results: Path, output: Path) -> None:
    """Replaces `output` by the files of a model and the card that its results give.

    Raises:
        ShippingError: if a file is missing, the model is too large, the results are not those of both splits at the
            resolution of the picture, or `output` holds anything but a model.
    """
    if what_is_there(output, lambda config: config.get("model_type") == "oneref") == "other":
        raise ShippingError(f"'{output}' holds something else than a model; choose another --output.")
    missing = [name for name in FILES if not (model / name).is_file()]
    if missing:
        raise ShippingError(f"'{model}' has no {', '.join(missing)}; give a finished model of the recipe.")
    size = (model / "model.safetensors").stat().st_size
    if size > MAX_BYTES:
        raise ShippingError(
            f"The weights have {size / 1e6:.1f} MB, more than the {MAX_BYTES / 1e6:.0f} that may ship."
        )
    told = json.loads(results.read_text(encoding="utf-8"))
    scores = told["splits"]
    if not set(SPLITS) <= set(scores):
        raise ShippingError(f"'{results}' lacks scores of {' or '.join(SPLITS)}; evaluate both splits.")
    if told["protocol"] != PROTOCOL:
        raise ShippingError(f"'{results}' is by another protocol; evaluate with `--protocol {PROTOCOL}`.")
    with complete_directory(output) as folder:
        for name in FILES:
            shutil.copyfile(model / name, folder / name)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.pop("auto_map", None)  # its classes are those of the package around it
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        card = TEMPLATE.read_text(encoding="utf-8").format(
            aims=aims_table(scores),
            types=types_table(scores),
            megabytes=f"{size / 1e6:.0f}",
            millions=f"{_parameters(model / 'model.safetensors') / 1e6:.1f}",
        )
        (folder / "README.md").write_text(card, encoding="utf-8")


def _parameters(path: Path) -> int:
    with safe_open(path, framework="numpy") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def aims_table(scores: dict) -> str:
    """What was aimed at and what was reached, as Markdown."""
    test, unseen = (scores[split] for split in SPLITS)
    accuracies = {name: group["rec"]["accuracy@0.5"] for name, group in test["by_expression_type"].items()}
    weakest = min(accuracies, key=accuracies.get)
    gap = test["rec"]["accuracy@0.5"] - unseen["rec"]["accuracy@0.5"]
    rows = [
        ("boxes right (IoU of at least 0.5)", "accuracy", test["rec"]["accuracy@0.5"]),
        (f"the same, weakest expression type (`{weakest}`)", "lowest", accuracies[weakest]),
        ("mean IoU of masks", "miou", test["res"]["miou"]),
        ("score tells right from wrong (AUROC)", "score_auroc", test["rec"].get("score_auroc", math.nan)),
    ]
    lines = ["| on the test split | aim | reached | |", "| --- | --- | --- | --- |"]
    for title, name, value in rows:
        verdict = "" if value >= TARGETS[name] else "missed"
        lines.append(f"| {title} | at least {TARGETS[name]:.2f} | {value:.3f} | {verdict} |")
    aim, verdict = TARGETS["gap"], "" if gap <= TARGETS["gap"] else "missed"
    lines.append(f"| fewer boxes right on unseen colour-shape pairs | at most {aim:.2f} | {gap:.3f} | {verdict} |")
    return "\n".join(lines)


def types_table(scores: dict) -> str:
    """Both splits by expression type, as Markdown."""
    test, unseen = (scores[split] for split in SPLITS)
    lines = [
        "| expression type | phrases | boxes right | mIoU | boxes right, unseen pairs |",
        "| --- | --- | --- | --- | --- |",
    ]
    groups = {"all": test, **test["by_expression_type"]}
    others = {"all": unseen, **unseen["by_expression_type"]}
    for name, group in groups.items():
        values = (group["rec"]["accuracy@0.5"], group["res"]["miou"], others[name]["rec"]["accuracy@0.5"])
        lines.append(f"| {name} | {group['samples']} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a finished model")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="results.json of its evaluation")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="DIR", help="default: the package's folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
